//! Elects the leader: the replica that holds one key of the store, on its own lease. Another replica is elected
//! within a TTL when the leader dies, and at once when it stops. The holder gets a fencing token that is a condition
//! of all that it writes. What the leader does is not known here.

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
/// After a failed attempt, and in case a change was missed, it is tried again after so long.
const RETRY: Duration = Duration::from_secs(2);

/// Proves that its holder is the leader: part of the condition of all that the leader writes.
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
                Err(error) => tracing::debug!(%error, "this replica cannot become the leader yet"),
            }
        }
        if registry.fencing_token().is_none() {
            let _ = tokio::time::timeout(RETRY, changes.of_replicas()).await;
        }
    }
}

/// Waits until this replica is the leader no more.
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
    let cause = format!("replica {} is the {LEADER}", options.replica);
    let event = NewEvent::of_mesh("duty-taken", &cause);
    let result = registry.txn_with_events(txn, &[event]).await?;
    Ok(result.succeeded.then_some(result.revision))
}

impl Registry {
    /// This replica is the leader.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.fencing_token().is_some()
    }

    /// Writes under the condition that this replica is still the leader, and waits until the view shows it. False: it is
    /// not, or what it looked at has changed.
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

    /// This replica's fencing token, if the view says that it is the leader.
    pub(in crate::registry) fn fencing_token(&self) -> Option<FencingToken> {
        let options = self.options();
        self.read(|view| {
            let duty = view.duty_holder(LEADER)?;
            let here = duty.replica == options.replica && duty.process_id == options.process_id;
            here.then_some(FencingToken(duty.at))
        })
    }
}
