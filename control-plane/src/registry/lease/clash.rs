//! Records that two living processes claim one node name: a record on a lease, which each further attempt renews, and
//! one event. The clash is visible as long as it lasts. Which process has the node is decided by `epoch`.

use heddle_proto::store::v1::{ClashRecord, NodeRecord};
use prost::Message as _;

use crate::{
    names::keys,
    registry::{
        core::{Registry, events::NewEvent},
        model::NodeIdentity,
    },
    store::{Compare, Op, StoreError, Txn},
};

/// A clash ends when the name has not been claimed for this many TTLs: a refused process tries again every 15 s.
const TTLS: u32 = 6;

/// Records the claim of a process that was superseded but still runs. If that fails, its next attempt records it.
pub(super) async fn report(registry: &Registry, claimant: &NodeIdentity) {
    if let Err(error) = try_report(registry, claimant).await {
        tracing::debug!(node = claimant.name, %error, "cannot record a clash of node names; retrying");
    }
}

async fn try_report(registry: &Registry, claimant: &NodeIdentity) -> Result<(), StoreError> {
    let store = registry.store();
    let key = keys::clash(&claimant.name);
    if let Some(known) = store.get(&key).await? {
        let record = ClashRecord::decode(known.value).unwrap_or_default();
        // If there are several claimants, the record names the first.
        return match known.lease {
            Some(lease) if record.process_id == claimant.process_id => {
                store.keep_alive(lease).await
            }
            _ => Ok(()),
        };
    }
    let Some(node) = store.get(&keys::node(&claimant.name)).await? else {
        return Ok(());
    };
    let holder = NodeRecord::decode(node.value).unwrap_or_default();
    let record = ClashRecord {
        process_id: claimant.process_id.clone(),
        epoch: claimant.epoch,
    };
    let lease = store.grant(registry.options().lease_ttl * TTLS).await?;
    let txn = Txn {
        compare: vec![Compare::absent(&key)],
        then: vec![Op::put_leased(&key, record.encode_to_vec(), lease)],
        ..Txn::default()
    };
    let cause = format!(
        "process {} at {} (epoch {}) claims the name of process {} at {} (epoch {}), and both are \
         running: give each node its own --node name",
        claimant.process_id,
        claimant.advertise,
        claimant.epoch,
        holder.process_id,
        holder.advertise,
        holder.epoch
    );
    let event = NewEvent::of_node("name-clash", &claimant.name, &cause);
    let result = registry.txn_with_events(txn, &[event]).await;
    if !result.as_ref().is_ok_and(|done| done.succeeded) {
        // Another replica was faster, or the store does not answer: no key is attached to this lease.
        registry.revoke_unused(lease).await;
    }
    result.map(drop)
}
