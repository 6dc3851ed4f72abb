//! Elects the leader: the replica that owns one key of the store, attached to its own lease. Another replica is elected
//! within a TTL if the leader dies, and at once if it stops. The leader gets a fencing token, which is a condition of
//! everything that it writes. This module does not know the leader's jobs.

use std::time::Duration;

use heddle_proto::store::v1::DutyRecord;
use prost::Message as _;

use crate::{
    names::keys,
    registry::{
        core::{Registry, ViewChanges, events::NewEvent},
        membership::{Membership, ReplicaLease},
    },
    store::{Compare, Op, Revision, StoreError, Txn},
};

/// The leader's key in the store.
pub(super) const LEADER: &str = "sweeper";
/// The pause after a failed attempt, and after which an attempt is made in case a change was missed.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Proves that its owner is the leader: a condition of everything that the leader writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) struct FencingToken(Revision);

impl FencingToken {
    pub(in crate::registry) fn compare(self) -> Compare {
        Compare::unchanged(&keys::duty(LEADER), self.0)
    }
}

/// Stands for election until this replica is the leader.
pub(super) async fn won(membership: &Membership, changes: &mut ViewChanges) -> FencingToken {
    let registry = membership.registry();
    loop {
        if let Some(token) = registry.fencing_token() {
            return token;
        }
        let free = registry.read(|view| view.duty_holder(LEADER).is_none());
        if let Some(lease) = membership.lease()
            && free
        {
            let result = take(registry, lease).await;
            registry.on_store_result(&result);
            match result {
                Ok(Some(at)) => registry.reached(at).await,
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "cannot run for leader; retrying"),
            }
        }
        if registry.fencing_token().is_none() {
            let _ = tokio::time::timeout(RETRY_PAUSE, changes.of_replicas()).await;
        }
    }
}

/// Waits until this replica is no longer the leader.
pub(super) async fn lost(registry: &Registry, changes: &mut ViewChanges, token: FencingToken) {
    while registry.fencing_token() == Some(token) {
        changes.of_replicas().await;
    }
}

async fn take(registry: &Registry, lease: ReplicaLease) -> Result<Option<Revision>, StoreError> {
    let options = registry.options();
    let key = keys::duty(LEADER);
    let record = DutyRecord {
        replica: options.replica.clone(),
        process_id: options.process_id.clone(),
    };
    let txn = Txn {
        compare: vec![
            Compare::absent(&key),
            Compare::unchanged(&keys::replica(&options.replica), lease.at),
        ],
        then: vec![Op::put_leased(&key, record.encode_to_vec(), lease.id)],
        ..Txn::default()
    };
    let cause = format!("replica {} is the leader", options.replica);
    let event = NewEvent::of_mesh("duty-taken", &cause);
    let result = registry.txn_with_events(txn, &[event]).await?;
    Ok(result.succeeded.then_some(result.revision))
}

impl Registry {
    /// Whether this replica is the leader.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.fencing_token().is_some()
    }

    /// Runs a transaction on the condition that this replica is still the leader, and waits until the view includes it.
    /// False if this replica is not the leader any more or another condition failed.
    pub(super) async fn txn_of_leader(
        &self,
        token: FencingToken,
        mut compare: Vec<Compare>,
        then: Vec<Op>,
        events: &[NewEvent],
    ) -> Result<bool, StoreError> {
        compare.push(token.compare());
        let txn = Txn {
            compare,
            then,
            ..Txn::default()
        };
        let result = self.txn_with_events(txn, events).await?;
        self.reached(result.revision).await;
        Ok(result.succeeded)
    }

    /// This replica's fencing token, if it is the leader according to the view.
    pub(in crate::registry) fn fencing_token(&self) -> Option<FencingToken> {
        let options = self.options();
        self.read(|view| {
            let duty = view.duty_holder(LEADER)?;
            let here = duty.replica == options.replica && duty.process_id == options.process_id;
            here.then_some(FencingToken(duty.at))
        })
    }
}
