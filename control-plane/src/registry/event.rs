//! What happened to nodes, services and replicas, and why. In come facts from those who cause them; out go operations
//! for the very transaction in which it happens, so that no event is told of what was not done, and none is missing.
//! Nothing is decided by an event, and its time is for people only: this is the one place that reads a clock on the wall.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_proto::store::v1::EventRecord;
use prost::Message as _;
use tokio::{sync::Mutex, time::Instant};

use super::{Registry, RegistryOptions};
use crate::store::{LeaseId, Op, StoreError, Txn, TxnResult, keys};

/// Events live at least so long; more than [`MAX_EVENTS`] are trimmed by the sweeper.
const KEPT: Duration = Duration::from_secs(3600);
/// Events of so long share a lease: it costs one grant.
const SHARED: Duration = Duration::from_secs(600);
pub(super) const MAX_EVENTS: usize = 1000;
/// Longest cause: whoever reads it is a person.
const MAX_CAUSE: usize = 1000;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Sorts by time of writing.
    pub id: Arc<str>,
    pub record: EventRecord,
}

/// What shall be told.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    kind: &'static str,
    node: String,
    service: String,
    cause: String,
}

impl Fact {
    pub(super) fn of_node(kind: &'static str, node: &str, cause: &str) -> Self {
        Self {
            node: node.to_owned(),
            ..Self::of_mesh(kind, cause)
        }
    }

    pub(super) fn of_service(kind: &'static str, service: &str, cause: &str) -> Self {
        Self {
            service: service.to_owned(),
            ..Self::of_mesh(kind, cause)
        }
    }

    #[cfg(test)]
    pub(super) fn said(&self) -> (&'static str, String) {
        (self.kind, self.cause.clone())
    }

    /// It concerns no node and no service.
    pub(super) fn of_mesh(kind: &'static str, cause: &str) -> Self {
        Self {
            kind,
            node: String::new(),
            service: String::new(),
            cause: cause.chars().take(MAX_CAUSE).collect(),
        }
    }
}

/// Milliseconds since 1970 by the clock on the wall.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Writes this replica's events.
#[derive(Default)]
pub(super) struct Chronicle {
    /// The lease of the events of the last minutes, and when it was granted.
    lease: Mutex<Option<(LeaseId, Instant)>>,
    told: AtomicU64,
}

impl Chronicle {
    async fn lease(&self, registry: &Registry) -> Result<LeaseId, StoreError> {
        let mut held = self.lease.lock().await;
        if let Some((lease, since)) = *held
            && since.elapsed() < SHARED
        {
            return Ok(lease);
        }
        let lease = registry.store().grant(KEPT + SHARED).await?;
        *held = Some((lease, Instant::now()));
        Ok(lease)
    }

    async fn forget(&self, lease: LeaseId) {
        let mut held = self.lease.lock().await;
        if held.is_some_and(|(it, _)| it == lease) {
            *held = None;
        }
    }

    fn op(&self, options: &RegistryOptions, fact: &Fact, lease: LeaseId) -> Op {
        let unix_ms = (options.wall_ms)();
        let record = EventRecord {
            kind: fact.kind.to_owned(),
            node: fact.node.clone(),
            service: fact.service.clone(),
            instance: String::new(),
            cause: fact.cause.clone(),
            replica: options.replica.clone(),
            unix_ms,
        };
        let n = self.told.fetch_add(1, Ordering::Relaxed);
        let id = format!("{unix_ms:014}-{}-{n:06}", options.replica);
        Op::put_leased(&keys::event(&id), record.encode_to_vec(), lease)
    }
}

impl Registry {
    /// A transaction that also tells what it does.
    pub(super) async fn txn_told(&self, txn: Txn, facts: &[Fact]) -> Result<TxnResult, StoreError> {
        if facts.is_empty() {
            return self.store().txn(txn).await;
        }
        let chronicle = self.chronicle();
        let mut lost = false;
        loop {
            let lease = chronicle.lease(self).await?;
            let mut told = txn.clone();
            let ops = facts
                .iter()
                .map(|fact| chronicle.op(self.options(), fact, lease));
            told.then.extend(ops);
            match self.store().txn(told).await {
                // The store has lost it (it was set back, say): the events get a new one, once.
                Err(StoreError::LeaseNotFound(id)) if id == lease && !lost => {
                    chronicle.forget(lease).await;
                    lost = true;
                }
                result => return result,
            }
        }
    }
}
