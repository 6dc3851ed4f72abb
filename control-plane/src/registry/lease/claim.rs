//! How a session takes the lease of its node, or learns who has it. The node's instances are not written here.

use std::collections::BTreeMap;

use heddle_proto::store::v1::{AliveRecord, NodeRecord};
use prost::Message as _;
use tokio::time::Instant;

use super::{LeaseError, NodeLease, clash, epoch, epoch_floor::epoch_floor};
use crate::{
    names::keys,
    registry::{core::Registry, model::NodeIdentity},
    store::{Compare, KeyValue, Op, Revision, Txn},
};

/// Attempts at a claim while others change the node's keys.
const CLAIM_ATTEMPTS: usize = 8;

impl NodeLease {
    /// Takes the node over, or resumes it if this process had it before.
    pub async fn claim(registry: &Registry, identity: &NodeIdentity) -> Result<Self, LeaseError> {
        for _ in 0..CLAIM_ATTEMPTS {
            let claimed = Self::try_claim(registry, identity).await;
            if let Err(LeaseError::Superseded { .. }) = &claimed {
                clash::report(registry, identity).await;
            }
            if let Some(lease) = claimed? {
                return Ok(lease);
            }
        }
        Err(LeaseError::Contended {
            node: identity.name.clone(),
        })
    }

    async fn try_claim(
        registry: &Registry,
        identity: &NodeIdentity,
    ) -> Result<Option<Self>, LeaseError> {
        let store = registry.store();
        let (node_key, alive_key) = (keys::node(&identity.name), keys::alive(&identity.name));
        let node = store.get(&node_key).await?;
        let alive = store.get(&alive_key).await?;
        let held = node
            .as_ref()
            .and_then(|node| NodeRecord::decode(node.value.clone()).ok());
        // Read after the node's record: if that was removed just before, the floor is already above its epoch.
        let floor = match &node {
            None => epoch_floor(store).await?,
            Some(_) => 0,
        };
        if alive
            .as_ref()
            .is_some_and(|alive| is_later(alive, identity))
        {
            let node = identity.name.clone();
            return Err(LeaseError::Replaced { node });
        }
        let record = epoch::claim(held.as_ref(), alive.is_some(), identity, floor)?;
        let at =
            |item: &Option<KeyValue>| item.as_ref().map_or(Revision(0), |item| item.mod_revision);
        let compare = vec![
            Compare::unchanged(&node_key, at(&node)),
            Compare::unchanged(&alive_key, at(&alive)),
        ];
        let begun = Instant::now();
        let lease = store.grant(registry.options().lease_ttl).await?;
        let here = AliveRecord {
            epoch: record.epoch,
            process_id: record.process_id.clone(),
            replica: registry.options().replica.clone(),
            attempt: identity.attempt,
        };
        let mut then = vec![Op::put_leased(&alive_key, here.encode_to_vec(), lease)];
        if held.as_ref() != Some(&record) {
            then.push(Op::put(&node_key, record.encode_to_vec()));
        }
        let events = epoch::event_of(held.as_ref(), alive.is_some(), &record);
        let txn = Txn {
            compare,
            then,
            ..Txn::default()
        };
        let result = registry.txn_with_events(txn, events.as_slice()).await?;
        let unused = if result.succeeded {
            alive.and_then(|alive| alive.lease)
        } else {
            Some(lease)
        };
        if let Some(unused) = unused {
            registry.revoke_unused(unused).await;
        }
        if result.succeeded {
            registry.on_beat(&record.name);
        }
        Ok(result.succeeded.then(|| Self {
            registry: registry.clone(),
            node: record.name,
            process_id: record.process_id,
            epoch: record.epoch,
            attempt: identity.attempt,
            resumed: held.is_some_and(|held| held.process_id == identity.process_id),
            lease,
            session: result.revision,
            last: result.revision,
            renewed: begun,
            written: BTreeMap::new(),
        }))
    }
}

/// Whether a session that the same process opened later has the node. Then this session's Hello was delayed, and its
/// content is out of date.
fn is_later(alive: &KeyValue, identity: &NodeIdentity) -> bool {
    // A record that cannot be decoded belongs to no process.
    let holder = AliveRecord::decode(alive.value.clone()).unwrap_or_default();
    identity.attempt != 0
        && holder.process_id == identity.process_id
        && holder.attempt > identity.attempt
}
