//! The memory of one node's instances while its session lasts, charged to the connection that registers them, because a
//! client can invent nodes with thousands of instances each. The size is estimated from the messages, and counted
//! exactly from the view when the estimate has doubled or does not fit.

use heddle_proto::control::v1::LocalInstance;
use prost::Message as _;

use crate::{
    budget::{Account, Charge, Refusal},
    registry::{Instance, Registry},
};

/// Bytes per instance in the view, the store's history and snapshots, without the data that it registers.
const INSTANCE: usize = 1 << 10;
/// How many copies are kept of the data that it registers.
const COPIES: usize = 3;

pub(super) struct InstanceCharge {
    account: Account,
    charge: Charge,
    /// The result of the last count.
    counted: usize,
}

impl InstanceCharge {
    pub(super) fn new(account: Account) -> Self {
        Self {
            charge: account.charge(),
            account,
            counted: 0,
        }
    }

    /// Charges instances that the node is about to add to those that it has.
    pub(super) fn add(
        &mut self,
        registry: &Registry,
        node: &str,
        instances: &[LocalInstance],
    ) -> Result<(), Refusal> {
        let added: usize = instances
            .iter()
            .map(|local| INSTANCE + local.encoded_len() * COPIES)
            .sum();
        if added == 0 {
            return Ok(());
        }
        let estimate = self.charge.bytes() + added;
        if estimate <= self.counted.saturating_mul(2).max(INSTANCE * 64)
            && self.set(estimate).is_ok()
        {
            return Ok(());
        }
        let held: usize = registry.read(|view| view.instances_of(node).map(|it| cost(it)).sum());
        self.counted = held + added;
        self.set(self.counted)
            .inspect_err(|_| self.account.count_refused())
    }

    fn set(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.charge.set("the instances of this node", bytes)
    }
}

fn cost(instance: &Instance) -> usize {
    let labels = instance
        .labels
        .iter()
        .map(|(key, value)| key.len() + value.len() + 64);
    let protos = instance
        .protos
        .iter()
        .map(heddle_proto::control::v1::ProtoService::encoded_len);
    let own = instance.health_reason.len() + labels.sum::<usize>() + protos.sum::<usize>();
    INSTANCE + own * COPIES
}
