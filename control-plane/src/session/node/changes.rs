//! Changes of a node's instances: checked, fitted to the addresses of the proxies, and written together under the node's
//! lease. Input: the Changes that have arrived, and the view. Output: writes, and an Ack for each Change.

use heddle_proto::control::v1::{Ack, Change, Rejection, ack, control_message};

use super::{End, Session};
use crate::{
    registry::{NodeWrite, Registry, View},
    session::{
        refusal,
        rejected::{self, Rejected},
        validate,
    },
};

/// Changes that are written together.
#[derive(Default)]
pub(super) struct PendingWrites {
    /// Each Change's sequence and rejected instances.
    changes: Vec<(u64, Vec<Rejection>)>,
    writes: Vec<NodeWrite>,
}

impl Session {
    pub(super) fn on_change(
        &mut self,
        change: Change,
        pending: &mut PendingWrites,
    ) -> Result<(), End> {
        let expected = self.sequence + 1;
        if change.sequence != expected {
            let found = change.sequence;
            let text =
                format!("is {found} where {expected} was expected: changes are numbered from 1");
            return Err(refusal::invalid("change.sequence", text).into());
        }
        self.instance_charge
            .add(&self.registry, &self.node, &change.upserted)?;
        let validate::Changes { writes, rejected } = validate::change(&self.node, change)?;
        let (writes, rejected) = self.fit(writes, rejected);
        pending.writes.extend(writes);
        pending
            .changes
            .push((expected, rejected::for_node(rejected)));
        self.sequence = expected;
        Ok(())
    }

    /// Rejects instances with the address of a proxy's listener. The earlier state of each rejected instance is
    /// removed.
    fn fit(
        &self,
        mut writes: Vec<NodeWrite>,
        mut rejected: Vec<Rejected>,
    ) -> (Vec<NodeWrite>, Vec<Rejected>) {
        self.registry.read(|view| {
            let on = view.node(&self.node);
            let at_a_proxy = |write: &mut NodeWrite| match write {
                NodeWrite::Put(key, local) => {
                    rejected::at_a_proxy(view, on?, key, rejected::address(local)?)
                }
                NodeWrite::Remove(..) => None,
            };
            let lost = writes.extract_if(.., |write| {
                let found = at_a_proxy(write);
                let is_one = found.is_some();
                rejected.extend(found);
                is_one
            });
            lost.for_each(drop);
            writes.extend(removals(view, &rejected));
        });
        for one in &rejected {
            one.log(&self.node);
        }
        (writes, rejected)
    }

    pub(super) async fn write(&mut self, pending: &mut PendingWrites) -> Result<(), End> {
        let PendingWrites { changes, writes } = std::mem::take(pending);
        if changes.is_empty() {
            return Ok(());
        }
        let schemas = writes.iter().filter_map(|write| match write {
            NodeWrite::Put(_, local) => Some(local.schema_sha256.as_str()),
            NodeWrite::Remove(..) => None,
        });
        let mut missing = missing(&self.registry, schemas);
        let revision = self.lease.change(writes).await?;
        if self.wanted.len() + missing.len() > validate::MAX_INSTANCES {
            // The node does not send the descriptors that it is asked for. It is asked again when it refers to them
            // again.
            self.wanted.clear();
        }
        self.wanted.extend(missing.iter().cloned());
        for (sequence, rejected) in changes {
            let missing_schemas = std::mem::take(&mut missing);
            let of = Some(ack::Of::Change(sequence));
            let ack = Ack {
                of,
                revision: revision.0,
                missing_schemas,
                rejected,
            };
            self.answer(control_message::Message::Ack(ack)).await?;
        }
        Ok(())
    }

    /// Removes instances whose address has become that of a proxy's listener. Checks only if a listener's address has
    /// changed since the last check.
    pub(super) async fn revalidate(&mut self) -> Result<Vec<Rejected>, End> {
        let changes = self.registry.listener_changes();
        if changes == self.validated_at {
            return Ok(Vec::new());
        }
        let found = |view: &View| {
            let rejected = rejected::at_proxies(view, &self.node);
            let writes = removals(view, &rejected);
            (rejected, writes)
        };
        let (rejected, writes) = self.registry.read(found);
        if !writes.is_empty() {
            for one in &rejected {
                one.log(&self.node);
            }
            self.lease.change(writes).await?;
        }
        self.validated_at = changes;
        Ok(rejected)
    }
}

/// Removes the earlier states of rejected instances, with the cause.
fn removals(view: &View, rejected: &[Rejected]) -> Vec<NodeWrite> {
    let taken_before = rejected.iter().filter_map(|one| {
        let key = one.key.clone()?;
        view.instance(&key)?;
        Some(NodeWrite::Remove(key, Some(one.cause())))
    });
    taken_before.collect()
}

/// The hashes for which the store has no descriptors, without duplicates.
pub(super) fn missing<'a>(
    registry: &Registry,
    hashes: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    registry.read(|view| {
        let missing = hashes.filter(|hash| !hash.is_empty() && !view.has_schema(hash));
        let missing: std::collections::BTreeSet<&str> = missing.collect();
        missing.into_iter().map(str::to_owned).collect()
    })
}
