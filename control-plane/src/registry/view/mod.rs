//! The state of the mesh, built from the store's events: nodes, instances, services and the claims of paths. Results
//! are sorted and read-only, and each change reports what changed. Pure: the same events give the same view, whatever
//! revision they are replayed from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use heddle_proto::{
    paths::{ByPath, Claimant, Owner, Path},
    registry::v1::Health,
};

use super::model::{
    Event, Instance, KnownService, Node, Replica,
    node::{Alive, Clash},
    owner_among,
};
use crate::{
    names::{InstanceKey, ServiceName},
    store::Revision,
};

mod batch;
mod fold;
mod claims;
mod control_plane;
mod proxies;
mod service;
mod changed_instances;

pub use batch::Batch;
pub use changed_instances::{ChangedInstances, InstanceId};
use claims::Claims;
pub(super) use claims::{PathOf, StoredClaim};
use control_plane::ControlPlaneState;
pub(super) use control_plane::DutyHolder;
use proxies::Proxies;
use service::Service;

#[derive(Clone, Debug, Default, PartialEq)]
struct NodeEntry {
    record: Option<Node>,
    alive: Option<Alive>,
    clash: Option<Clash>,
    /// Service → the number of its instances on this node.
    services: BTreeMap<ServiceName, usize>,
}

/// The state of the mesh. Results are sorted and do not depend on clocks, so that they are equal on every replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    revision: Revision,
    services: BTreeMap<ServiceName, Service>,
    nodes: BTreeMap<Arc<str>, NodeEntry>,
    claims: Claims,
    schemas: BTreeSet<Arc<str>>,
    marked: BTreeSet<Arc<str>>,
    control_plane: ControlPlaneState,
    proxies: Proxies,
    instances: usize,
    /// The memory of all instances, by their own estimate.
    instance_bytes: usize,
}

impl View {
    /// The memory of all instances of the mesh.
    pub(crate) fn instance_bytes(&self) -> usize {
        self.instance_bytes
    }

    /// The store's revision that this view includes.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Known services, sorted. A service without instances stays known for a limited time.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Instances of one service, sorted by node and id.
    pub fn instances(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<Instance>> {
        self.services
            .get(service)
            .into_iter()
            .flat_map(|service| service.instances.values())
    }

    #[must_use]
    pub fn instance(&self, key: &InstanceKey) -> Option<&Arc<Instance>> {
        let id = (Arc::clone(&key.node), Arc::clone(&key.id));
        self.instance_at(&key.service, &id)
    }

    /// The instance of a service with this node and id.
    #[must_use]
    pub fn instance_at(&self, service: &ServiceName, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.services.get(service)?.instances.get(id)
    }

    /// The number of a service's instances.
    #[must_use]
    pub fn instances_in(&self, service: &ServiceName) -> usize {
        let service = self.services.get(service);
        service.map_or(0, |service| service.instances.len())
    }

    /// The service's record, if it replaces missing information of instances: there are none, or none of them has
    /// listed its proto services yet.
    #[must_use]
    pub fn stands_in(&self, service: &ServiceName) -> Option<&Arc<KnownService>> {
        self.services.get(service)?.stands_in()
    }

    /// The service's record, whether it is needed or not.
    pub(super) fn recorded(&self, service: &ServiceName) -> Option<&KnownService> {
        let record = self.services.get(service)?.record.as_ref()?;
        Some(&record.known)
    }

    /// The revision at which the service's record was last written, if the service has no instance.
    pub(super) fn empty_since_write(&self, service: &ServiceName) -> Option<Revision> {
        let service = self.services.get(service)?;
        let record = service.record.as_ref()?;
        service.instances.is_empty().then_some(record.modified)
    }

    /// The number of instances of all services.
    #[must_use]
    pub fn instance_count(&self) -> usize {
        self.instances
    }

    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).and_then(|entry| entry.record.as_ref())
    }

    /// All nodes with a record, alive or not, sorted.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes
            .values()
            .filter_map(|entry| entry.record.as_ref())
    }

    /// The number of a node's instances.
    #[must_use]
    pub fn instances_on(&self, node: &str) -> usize {
        self.nodes
            .get(node)
            .map_or(0, |entry| entry.services.values().sum())
    }

    /// The services of a node's instances, sorted.
    pub fn services_on(&self, node: &str) -> impl Iterator<Item = &ServiceName> {
        self.nodes
            .get(node)
            .into_iter()
            .flat_map(|entry| entry.services.keys())
    }

    /// Instances of one node, sorted by service and id.
    pub fn instances_of<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        self.services_on(node).flat_map(move |service| {
            let of_service = self.services.get(service).into_iter();
            of_service.flat_map(move |service| service.instances_of(node))
        })
    }

    /// The node whose proxy listens at the address of an instance on the node `on`: `on` itself, or another living
    /// node. `on` need not equal the node of that name in this view.
    #[must_use]
    pub fn proxy_at(&self, on: &Node, address: SocketAddr) -> Option<Arc<str>> {
        self.proxies.at(on, address, |name| self.node(name))
    }

    /// The services that claim the path of a proto service now, in all namespaces, sorted by name.
    pub fn path_claimants<'a>(
        &'a self,
        proto: &str,
    ) -> impl Iterator<Item = Claimant<'a, &'a ServiceName>> {
        self.claims.claimants(proto)
    }

    /// The owner of the path of a proto service in a namespace.
    #[must_use]
    pub fn path_owner(&self, proto: &str, namespace: &str) -> Owner<&ServiceName> {
        owner_among(self.path_claimants(proto), namespace)
    }

    /// The service that a call by path is for, if its caller is in this namespace.
    #[must_use]
    pub fn by_path(&self, proto: &str, namespace: &str) -> ByPath<&ServiceName> {
        Path::of(self.path_claimants(proto).collect()).calls_from(namespace)
    }

    /// The proto services whose paths a service claims now, sorted, each with the revision since which the store has
    /// the claim; 0 if it does not have it.
    #[must_use]
    pub fn path_claims(&self, service: &ServiceName) -> Vec<(Arc<str>, Revision)> {
        let mut protos = self.claim(service).protos;
        protos.sort_unstable();
        let since = |proto: Arc<str>| {
            let since = self.claims.since(service, &proto);
            (proto, since)
        };
        protos.into_iter().map(since).collect()
    }

    /// The claims of a service in the store, by proto service.
    pub(super) fn stored_claims(
        &self,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&Arc<str>, &StoredClaim)> {
        self.claims.stored(service)
    }

    pub(super) fn stored_claim(&self, service: &ServiceName, proto: &str) -> Option<&StoredClaim> {
        self.claims.stored_one(service, proto)
    }

    /// Services with claims in the store, whether they still exist or not.
    pub(super) fn claiming_services(&self) -> impl Iterator<Item = &ServiceName> {
        self.claims.services()
    }

    /// The number of claims in the store, in total and in this namespace.
    #[must_use]
    pub fn claim_counts(&self, namespace: &str) -> (usize, usize) {
        self.claims.counts(namespace)
    }

    /// Whether an instance of the service serves this proto service and claims its path.
    pub(super) fn serves_path(&self, service: &ServiceName, proto: &str) -> bool {
        self.services
            .get(service)
            .is_some_and(|service| service.serves_path(proto))
    }

    /// The revision at which the record of a service was first written; the service with the lower one is older.
    pub(super) fn known_since(&self, service: &ServiceName) -> Option<Revision> {
        let record = self.services.get(service)?.record.as_ref()?;
        Some(record.created)
    }

    /// An instance's health as clients see it: healthy instances of a suspect node are UNKNOWN.
    #[must_use]
    pub fn health(&self, instance: &Instance) -> Health {
        match self.node(&instance.node) {
            Some(node) if node.suspect && instance.health == Health::Healthy => Health::Unknown,
            _ => instance.health,
        }
    }

    /// The cause of the health that `health` returns, as a sentence; empty if there is none.
    #[must_use]
    pub fn health_reason(&self, instance: &Instance) -> String {
        if self.health(instance) == instance.health {
            return instance.health_reason.clone();
        }
        format!(
            "the lease of its node {} expired together with many others",
            instance.node
        )
    }

    /// Whether the store has these descriptors and they are not marked for deletion.
    #[must_use]
    pub fn has_schema(&self, sha256: &str) -> bool {
        self.schemas.contains(sha256) && !self.marked.contains(sha256)
    }

    /// The hashes of all descriptors in the store, sorted.
    pub(super) fn schemas(&self) -> impl Iterator<Item = &Arc<str>> {
        self.schemas.iter()
    }

    /// The hashes of descriptors that are marked for deletion.
    pub(super) fn marked_schemas(&self) -> &BTreeSet<Arc<str>> {
        &self.marked
    }

    /// Replicas of the control plane that serve now, sorted by name.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.control_plane.replicas()
    }

    #[must_use]
    pub fn replica(&self, name: &str) -> Option<&Replica> {
        self.control_plane.replica(name)
    }

    /// The replica that performs a duty.
    pub(super) fn duty_holder(&self, name: &str) -> Option<&DutyHolder> {
        self.control_plane.duty_holder(name)
    }

    /// The events, oldest first: those of about the last hour, at most about 1,000.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        self.control_plane.events()
    }
}

#[cfg(test)]
mod tests;
