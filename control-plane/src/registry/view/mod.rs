//! The state of the mesh: nodes, instances, services and the claims of paths, folded from the store's events. Answers
//! are sorted and read-only, and each change names what changed. Pure: the same events give the same view, from
//! whatever revision they are replayed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use heddle_proto::{
    paths::{Claimant, Owner},
    registry::v1::Health,
};

use super::model::{
    ByPath, Event, Instance, KnownService, Node, Replica, by_path,
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
    /// Service → how many instances of it the node has.
    services: BTreeMap<ServiceName, usize>,
}

/// The fold. Answers are sorted and free of clocks, so that they are equal on every replica.
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
}

impl View {
    /// The store's revision that this view shows.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Known services, sorted: with instances, or without any for a bounded time.
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

    /// The instance of a service at a place.
    #[must_use]
    pub fn instance_at(&self, service: &ServiceName, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.services.get(service)?.instances.get(id)
    }

    /// How many instances a service has.
    #[must_use]
    pub fn instances_in(&self, service: &ServiceName) -> usize {
        let service = self.services.get(service);
        service.map_or(0, |service| service.instances.len())
    }

    /// By what a service is known where its instances do not say it: it has none, or none of them has told yet what
    /// it serves.
    #[must_use]
    pub fn stands_in(&self, service: &ServiceName) -> Option<&Arc<KnownService>> {
        self.services.get(service)?.stands_in()
    }

    /// What the service's record says, whether it is needed or not.
    pub(super) fn recorded(&self, service: &ServiceName) -> Option<&KnownService> {
        let record = self.services.get(service)?.record.as_ref()?;
        Some(&record.known)
    }

    /// If the service has no instance: when its record was written last.
    pub(super) fn empty_since_write(&self, service: &ServiceName) -> Option<Revision> {
        let service = self.services.get(service)?;
        let record = service.record.as_ref()?;
        service.instances.is_empty().then_some(record.modified)
    }

    /// Instances of all services.
    #[must_use]
    pub fn instance_count(&self) -> usize {
        self.instances
    }

    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).and_then(|entry| entry.record.as_ref())
    }

    /// All nodes ever seen, sorted.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes
            .values()
            .filter_map(|entry| entry.record.as_ref())
    }

    /// How many instances a node has.
    #[must_use]
    pub fn instances_on(&self, node: &str) -> usize {
        self.nodes
            .get(node)
            .map_or(0, |entry| entry.services.values().sum())
    }

    /// Services that a node has instances of, sorted.
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

    /// The node whose proxy listens at the address of an instance of `on`, which need not be known here as it is: `on`
    /// itself, or another that lives.
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

    /// Who owns the path of a proto service in a namespace.
    #[must_use]
    pub fn path_owner(&self, proto: &str, namespace: &str) -> Owner<&ServiceName> {
        owner_among(self.path_claimants(proto), namespace)
    }

    /// Whom a call by path means, of a caller in this namespace.
    #[must_use]
    pub fn by_path(&self, proto: &str, namespace: &str) -> ByPath<&ServiceName> {
        by_path(self.path_claimants(proto).collect(), namespace)
    }

    /// The proto services whose paths a service claims now, sorted, each with the revision since which the claim is in
    /// the store; 0: it is not.
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

    /// The claims of a service that the store holds, by proto service.
    pub(super) fn stored_claims(
        &self,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&Arc<str>, &StoredClaim)> {
        self.claims.stored(service)
    }

    pub(super) fn stored_claim(&self, service: &ServiceName, proto: &str) -> Option<&StoredClaim> {
        self.claims.stored_one(service, proto)
    }

    /// Services of which the store holds claims, whether they still exist or not.
    pub(super) fn claiming_services(&self) -> impl Iterator<Item = &ServiceName> {
        self.claims.services()
    }

    /// How many claims the store holds, in all and in this namespace.
    #[must_use]
    pub fn claim_counts(&self, namespace: &str) -> (usize, usize) {
        self.claims.counts(namespace)
    }

    /// An instance of the service serves this proto service and claims its path.
    pub(super) fn serves_path(&self, service: &ServiceName, proto: &str) -> bool {
        self.services
            .get(service)
            .is_some_and(|service| service.serves_path(proto))
    }

    /// When the record of a service was first written: who is the older one.
    pub(super) fn known_since(&self, service: &ServiceName) -> Option<Revision> {
        let record = self.services.get(service)?.record.as_ref()?;
        Some(record.created)
    }

    /// An instance's health as clients see it: those of a suspect node are UNKNOWN.
    #[must_use]
    pub fn health(&self, instance: &Instance) -> Health {
        match self.node(&instance.node) {
            Some(node) if node.suspect && instance.health == Health::Healthy => Health::Unknown,
            _ => instance.health,
        }
    }

    /// Why an instance has the health that `health` tells, in a sentence; empty if there is nothing to say.
    #[must_use]
    pub fn health_reason(&self, instance: &Instance) -> String {
        if self.health(instance) == instance.health {
            return instance.health_reason.clone();
        }
        format!(
            "the lease of its node {} lapsed together with many others",
            instance.node
        )
    }

    /// The store holds these descriptors, and they are to stay.
    #[must_use]
    pub fn has_schema(&self, sha256: &str) -> bool {
        self.schemas.contains(sha256) && !self.marked.contains(sha256)
    }

    /// All descriptors that the store holds, sorted by hash.
    pub(super) fn schemas(&self) -> impl Iterator<Item = &Arc<str>> {
        self.schemas.iter()
    }

    /// Those that go soon unless somebody names them.
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

    /// The replica that holds a duty.
    pub(super) fn duty_holder(&self, name: &str) -> Option<&DutyHolder> {
        self.control_plane.duty_holder(name)
    }

    /// What happened, oldest first: of about the last hour, and at most about 1,000 events.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        self.control_plane.events()
    }
}

#[cfg(test)]
mod tests;
