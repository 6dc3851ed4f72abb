//! Records of nodes that have gone for long. A node's record guards its epochs; when it is forgotten the highest of them
//! stays, as a floor for all names that are claimed without a record: an old process that comes back later still finds
//! that its epoch is the lower one.

use std::sync::Arc;

use heddle_proto::store::v1::NodeRecord;
use prost::Message as _;

use super::{Collector, Fact, now};
use crate::{
    names::keys,
    registry::lease::epoch_floor,
    store::{Compare, Op, StoreError},
};

/// Nodes in one transaction: each is compared twice, deleted and told of.
const AT_ONCE: usize = 20;

impl Collector<'_> {
    pub(super) async fn look_at_nodes(&mut self) -> Result<(), StoreError> {
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
        for some in due.chunks(AT_ONCE) {
            self.forget(some).await?;
        }
        Ok(())
    }

    async fn forget(&self, nodes: &[Arc<str>]) -> Result<(), StoreError> {
        let store = self.registry.store();
        let (mut floor, at) = epoch_floor::read(store).await?;
        let mut compare = vec![Compare::unchanged(keys::EPOCH_FLOOR, at)];
        let (mut then, mut facts) = (Vec::new(), Vec::new());
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
                "process {} (epoch {}) has been gone for long, or others for less long",
                record.process_id, record.epoch
            );
            facts.push(Fact::of_node("node-forgotten", name, &cause));
            forgotten.push(name);
        }
        if then.is_empty() {
            return Ok(());
        }
        then.push(Op::put(keys::EPOCH_FLOOR, floor.to_string()));
        if self.write(compare, then, &facts).await? {
            for node in forgotten {
                tracing::info!(
                    event = "node-forgotten",
                    %node,
                    "the record of a node that has gone for long is removed"
                );
            }
        }
        Ok(())
    }
}
