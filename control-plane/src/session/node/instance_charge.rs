//! The memory of instances: those of one node, charged while its session lasts to the connection that registers them, and
//! those of the whole mesh, which stay for a while after a session. Both have limits, because a client can invent nodes
//! with thousands of instances each. The size is estimated from the messages, and counted exactly from the view when the
//! estimate has doubled or does not fit.

use std::sync::Arc;

use heddle_proto::control::v1::LocalInstance;
use prost::Message as _;
use tonic::Status;

use crate::{
    budget::{Account, Charge, Refusal, megabytes},
    names::{InstanceKey, ServiceName},
    registry::{INSTANCE_BYTES as INSTANCE, INSTANCE_COPIES as COPIES, Registry, View},
};

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

    /// Charges the instances of a Hello, which replace those that the node has.
    pub(super) fn begin(
        &mut self,
        registry: &Registry,
        node: &str,
        instances: &[LocalInstance],
    ) -> Result<(), Status> {
        let added = bytes(instances);
        let replaced = |view: &View| view.instances_of(node).map(|it| it.memory_bytes()).sum();
        self.fit_the_mesh(registry, added, replaced)?;
        Ok(self.charge(registry, "", added)?)
    }

    /// Charges instances that the node is about to add to those that it has.
    pub(super) fn add(
        &mut self,
        registry: &Registry,
        node: &Arc<str>,
        instances: &[LocalInstance],
    ) -> Result<(), Status> {
        let added = bytes(instances);
        if added == 0 {
            return Ok(());
        }
        let replaced = |view: &View| {
            let keys = instances.iter().filter_map(|local| key_of(node, local));
            let found = keys.filter_map(|key| view.instance(&key));
            found.map(|it| it.memory_bytes()).sum()
        };
        self.fit_the_mesh(registry, added, replaced)?;
        Ok(self.charge(registry, node, added)?)
    }

    /// Refuses instances if those of the whole mesh would exceed the limit of all clients. What a node only replaces is
    /// never refused. `replaced` is only called near the limit.
    fn fit_the_mesh(
        &self,
        registry: &Registry,
        added: usize,
        replaced: impl FnOnce(&View) -> usize,
    ) -> Result<(), Status> {
        let Some(limit) = self.account.limit() else {
            return Ok(());
        };
        let held = registry.read(View::instance_bytes);
        if held + added <= limit {
            return Ok(());
        }
        let replaced = registry.read(replaced);
        // The estimate of a message is a little higher than that of the same instances in the view.
        if added <= replaced + replaced / 2 || held + added - replaced <= limit {
            return Ok(());
        }
        self.account.count_refused();
        Err(Status::resource_exhausted(format!(
            "the instances of this node would take {} more, and those of the mesh take {} of the {} that they may: remove \
             instances that are not needed, wait until those of nodes that are gone are removed, or start the control \
             plane with a larger --client-memory",
            megabytes(added - replaced),
            megabytes(held),
            megabytes(limit),
        )))
    }

    fn charge(&mut self, registry: &Registry, node: &str, added: usize) -> Result<(), Refusal> {
        if added == 0 {
            return Ok(());
        }
        let estimate = self.charge.bytes() + added;
        if estimate <= self.counted.saturating_mul(2).max(INSTANCE * 64)
            && self.set(estimate).is_ok()
        {
            return Ok(());
        }
        let held: usize = registry.read(|view| {
            let of_node = view.instances_of(node);
            of_node.map(|it| it.memory_bytes()).sum()
        });
        self.counted = held + added;
        self.set(self.counted)
            .inspect_err(|_| self.account.count_refused())
    }

    fn set(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.charge.set("the instances of this node", bytes)
    }
}

/// An estimate of the memory of instances in a message.
fn bytes(instances: &[LocalInstance]) -> usize {
    let one = |local: &LocalInstance| INSTANCE + local.encoded_len() * COPIES;
    instances.iter().map(one).sum()
}

/// The key of an instance in a message that is not checked yet; an invalid one has no instance in the view.
fn key_of(node: &Arc<str>, local: &LocalInstance) -> Option<InstanceKey> {
    let instance = local.instance.as_ref()?;
    let namespace = match instance.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    Some(InstanceKey {
        node: Arc::clone(node),
        service: ServiceName::parse(&format!("{}.{namespace}", instance.service))?,
        id: instance.id.as_str().into(),
    })
}
