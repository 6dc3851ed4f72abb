//! Records events: what happened to nodes, instances, services and replicas, and why. An event is written in the
//! transaction that it describes, so no event is missing and none describes a change that did not happen. No decision
//! depends on events; their times are only for people.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use heddle_proto::{EVENT_KINDS, store::v1::EventRecord};
use prost::Message as _;
use tokio::{sync::Mutex, time::Instant};

use super::Registry;
use crate::{
    names::{InstanceKey, ServiceName, keys},
    registry::options::RegistryOptions,
    store::{LeaseId, Op, StoreError, Txn, TxnResult},
};

/// Events are kept for at least this long. If there are more than [`MAX_EVENTS`], the leader trims them.
const RETENTION: Duration = Duration::from_secs(3600);
/// Events of this period share a lease, which costs one grant.
const LEASE_SHARED_FOR: Duration = Duration::from_secs(600);
pub(in crate::registry) const MAX_EVENTS: usize = 1000;
/// The longest cause, in characters: causes are read by people.
const MAX_CAUSE: usize = 1000;
/// The most services of a node that its event has.
const MAX_SERVICES: usize = 200;

/// An event to be recorded.
#[derive(Clone, Debug)]
pub(in crate::registry) struct NewEvent {
    kind: &'static str,
    node: String,
    service: String,
    instance: String,
    cause: String,
    services: Vec<String>,
}

/// An event with its key: if it is written twice, it is still one event.
#[derive(Clone, Debug)]
pub(in crate::registry) struct EventEntry {
    key: String,
    value: Bytes,
}

#[cfg(test)]
impl EventEntry {
    pub(in crate::registry) fn named(key: &str, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.to_owned(),
            value: value.into(),
        }
    }

    pub(in crate::registry) fn bytes(&self) -> usize {
        self.value.len()
    }
}

impl NewEvent {
    pub(in crate::registry) fn of_node(kind: &'static str, node: &str, cause: &str) -> Self {
        Self {
            node: node.to_owned(),
            ..Self::of_mesh(kind, cause)
        }
    }

    pub(in crate::registry) fn of_service(kind: &'static str, service: &str, cause: &str) -> Self {
        Self {
            service: service.to_owned(),
            ..Self::of_mesh(kind, cause)
        }
    }

    pub(in crate::registry) fn of_instance(
        kind: &'static str,
        key: &InstanceKey,
        cause: &str,
    ) -> Self {
        Self {
            instance: key.id.to_string(),
            ..Self::of_instances(kind, key, cause)
        }
    }

    /// An event about several instances of one service on one node; `key` is one of them.
    pub(in crate::registry) fn of_instances(
        kind: &'static str,
        key: &InstanceKey,
        cause: &str,
    ) -> Self {
        Self {
            node: key.node.to_string(),
            service: key.service.to_string(),
            ..Self::of_mesh(kind, cause)
        }
    }

    /// For an event of a node: the services of its instances, of which the first [`MAX_SERVICES`] are recorded.
    pub(in crate::registry) fn with_services<'s>(
        mut self,
        services: impl IntoIterator<Item = &'s ServiceName>,
    ) -> Self {
        let services = services.into_iter().take(MAX_SERVICES);
        self.services = services.map(ToString::to_string).collect();
        self
    }

    pub(in crate::registry) fn log(&self, what: &str) {
        let Self {
            kind,
            node,
            service,
            instance,
            cause,
            services: _,
        } = self;
        tracing::warn!(event = kind, node, service, instance, cause, "{what}");
    }

    #[cfg(test)]
    pub(in crate::registry) fn kind_and_cause(&self) -> (&'static str, String) {
        (self.kind, self.cause.clone())
    }

    /// An event about no particular node or service.
    pub(in crate::registry) fn of_mesh(kind: &'static str, cause: &str) -> Self {
        debug_assert!(EVENT_KINDS.contains(&kind), "add {kind} to EVENT_KINDS");
        Self {
            kind,
            node: String::new(),
            service: String::new(),
            instance: String::new(),
            cause: cause.chars().take(MAX_CAUSE).collect(),
            services: Vec::new(),
        }
    }
}

/// Records this replica's events.
#[derive(Default)]
pub(in crate::registry) struct EventRecorder {
    /// The lease that recent events share, and when it was granted.
    lease: Mutex<Option<(LeaseId, Instant)>>,
    recorded: AtomicU64,
}

impl EventRecorder {
    async fn lease(&self, registry: &Registry) -> Result<LeaseId, StoreError> {
        let mut held = self.lease.lock().await;
        if let Some((lease, since)) = *held
            && since.elapsed() < LEASE_SHARED_FOR
        {
            return Ok(lease);
        }
        let lease = registry.store().grant(RETENTION + LEASE_SHARED_FOR).await?;
        *held = Some((lease, Instant::now()));
        Ok(lease)
    }

    async fn forget(&self, lease: LeaseId) {
        let mut held = self.lease.lock().await;
        if held.is_some_and(|(it, _)| it == lease) {
            *held = None;
        }
    }

    fn entry(&self, options: &RegistryOptions, event: &NewEvent) -> EventEntry {
        let unix_ms = (options.wall_ms)();
        let record = EventRecord {
            kind: event.kind.to_owned(),
            node: event.node.clone(),
            service: event.service.clone(),
            instance: event.instance.clone(),
            cause: event.cause.clone(),
            replica: options.replica.clone(),
            unix_ms,
            services: event.services.clone(),
        };
        let n = self.recorded.fetch_add(1, Ordering::Relaxed);
        let id = format!("{unix_ms:014}-{}-{n:06}", options.replica);
        EventEntry {
            key: keys::event(&id),
            value: record.encode_to_vec().into(),
        }
    }
}

impl Registry {
    /// Gives an event its key, for transactions that may be retried.
    pub(in crate::registry) fn entry(&self, event: &NewEvent) -> EventEntry {
        self.event_recorder().entry(self.options(), event)
    }

    /// A transaction that also records its events.
    pub(in crate::registry) async fn txn_with_events(
        &self,
        txn: Txn,
        events: &[NewEvent],
    ) -> Result<TxnResult, StoreError> {
        let entries: Vec<_> = events.iter().map(|event| self.entry(event)).collect();
        self.txn_with_entries(txn, &entries).await
    }

    /// Like `txn_with_events`, for events that already have their keys.
    pub(in crate::registry) async fn txn_with_entries(
        &self,
        txn: Txn,
        entries: &[EventEntry],
    ) -> Result<TxnResult, StoreError> {
        if entries.is_empty() {
            return self.store().txn(txn).await;
        }
        let recorder = self.event_recorder();
        let mut lost = false;
        loop {
            let lease = recorder.lease(self).await?;
            let mut whole = txn.clone();
            let put = |entry: &EventEntry| Op::put_leased(&entry.key, entry.value.clone(), lease);
            whole.then.extend(entries.iter().map(put));
            match self.store().txn(whole).await {
                // The store has lost the lease (for example, it was restored from a backup): retry once with a new one.
                // Not every store can report which of several leases is missing; if it is another one, the second
                // attempt fails too.
                Err(StoreError::LeaseNotFound(_)) if !lost => {
                    recorder.forget(lease).await;
                    lost = true;
                }
                result => return result,
            }
        }
    }
}
