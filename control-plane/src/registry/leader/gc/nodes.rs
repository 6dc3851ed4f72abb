//! Removes records of nodes that have been gone for a long time. The highest epoch of the removed records becomes the
//! floor for names that are claimed without a record, so that an old process that returns still has the lower epoch.

use std::sync::Arc;

use heddle_proto::store::v1::NodeRecord;
use prost::Message as _;

use super::{Collector, NewEvent, now};
use crate::{
    names::keys,
    registry::lease::epoch_floor,
    store::{Compare, Op, StoreError},
};

/// Nodes per transaction: each has two conditions, a deletion and an event.
const MAX_PER_TXN: usize = 20;

impl Collector<'_> {
    pub(super) async fn check_nodes(&mut self) -> Result<(), StoreError> {
        let gone = self.registry.read(|view| {
            view.nodes()
                .filter(|node| !node.alive && view.instances_on(&node.name) == 0)
                .map(|node| Arc::clone(&node.name))
                .collect()
        });
        self.gone.observe(gone, now());
        let options = &self.registry.options().gc;
        let due = self
            .gone
            .due(now(), options.nodes_after, options.max_gone_nodes);
        for some in due.chunks(MAX_PER_TXN) {
            self.forget(some).await?;
        }
        Ok(())
    }

    async fn forget(&self, nodes: &[Arc<str>]) -> Result<(), StoreError> {
        let store = self.registry.store();
        let (mut floor, at) = epoch_floor::read(store).await?;
        let mut compare = vec![Compare::unchanged(keys::EPOCH_FLOOR, at)];
        let (mut then, mut events) = (Vec::new(), Vec::new());
        let mut forgotten = Vec::new();
        for name in nodes {
            let key = keys::node(name);
            let Some(found) = store.get(&key).await? else {
                continue;
            };
            let record = NodeRecord::decode(found.value).unwrap_or_default();
            floor = floor.max(record.epoch);
            compare.push(Compare::unchanged(&key, found.mod_revision));
            compare.push(Compare::absent(&keys::alive(name)));
            then.push(Op::delete(&key));
            let cause = format!(
                "process {} (epoch {}) has been gone for too long, or is the oldest of too many \
                 that have gone",
                record.process_id, record.epoch
            );
            events.push(NewEvent::of_node("node-forgotten", name, &cause));
            forgotten.push(name);
        }
        if then.is_empty() {
            return Ok(());
        }
        then.push(Op::put(keys::EPOCH_FLOOR, floor.to_string()));
        if self.write(compare, then, &events).await? {
            for node in forgotten {
                tracing::info!(
                    event = "node-forgotten",
                    %node,
                    "deleted the record of a node that has gone"
                );
            }
        }
        Ok(())
    }
}
