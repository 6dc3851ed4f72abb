//! The state of the mesh: nodes, instances, services and the claims of paths, folded from the store's events. Answers
//! are sorted and read-only, and each change names what changed. Pure: the same events give the same view, from
//! whatever revision they are replayed.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use heddle_proto::{
    paths::{Claimant, Owner},
    registry::v1::Health,
    store::v1::{ClaimRecord, InstanceRecord, NodeRecord, ServiceRecord},
};
use prost::Message as _;

use super::model::{
    ByPath, Event, Instance, KnownService, Node, Replica, by_path,
    node::{Alive, Clash},
    owner_among,
};
use crate::{
    names::{InstanceKey, ServiceName, keys},
    store::{Changes, KeyValue, Revision},
};

mod claims;
mod control_plane;
mod proxies;
mod service;
mod changed_instances;

pub use changed_instances::{ChangedInstances, InstanceId};
use claims::{Claimed, Claims};
pub(super) use claims::{PathOf, StoredClaim};
use control_plane::ControlPlaneState;
pub(super) use control_plane::DutyHolder;
use proxies::Proxies;
use service::{Record, Service};

/// What one or several revisions changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The view's revision after them.
    pub revision: Revision,
    /// Services whose content changed: an instance, what matters to clients of the node of one, or what stands in
    /// where there is none.
    pub services: BTreeSet<ServiceName>,
    /// Which instances of them; a service that is absent here changed in nothing but its record.
    pub instances: BTreeMap<ServiceName, ChangedInstances>,
    /// Nodes that changed, lease included.
    pub nodes: BTreeSet<Arc<str>>,
    /// Replicas of the control plane, or their duties.
    pub replicas: bool,
    /// Something happened that `View::events` tells.
    pub events: bool,
    /// Where proxies listen.
    pub listeners: bool,
    /// Claims of paths that came or went, or whose service has instances now and had none, or the reverse.
    pub paths: BTreeSet<PathOf>,
}

impl Batch {
    /// Adds a later batch.
    pub fn merge(&mut self, later: Self) {
        self.revision = self.revision.max(later.revision);
        self.services.extend(later.services);
        for (service, changed) in later.instances {
            self.instances.entry(service).or_default().merge(changed);
        }
        self.nodes.extend(later.nodes);
        self.replicas |= later.replicas;
        self.events |= later.events;
        self.listeners |= later.listeners;
        self.paths.extend(later.paths);
    }

    fn mark_changed(&mut self, service: &ServiceName, id: InstanceId) {
        self.services.insert(service.clone());
        let changed = self.instances.entry(service.clone()).or_default();
        changed.insert(id);
    }

    fn mark_all_changed(&mut self, service: &ServiceName) {
        self.services.insert(service.clone());
        self.instances
            .insert(service.clone(), ChangedInstances::All);
    }
}

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

    /// Builds a view from all keys as they stood at a revision.
    #[must_use]
    pub fn load<'a>(revision: Revision, items: impl IntoIterator<Item = &'a KeyValue>) -> Self {
        let mut view = Self {
            revision,
            ..Self::default()
        };
        let mut batch = Batch::default();
        for item in items {
            view.set(&item.key, Some(item), &mut batch);
        }
        view
    }

    /// Folds one revision's events in and adds what they changed. Events that it has seen already change nothing.
    pub fn apply(&mut self, changes: &Changes, batch: &mut Batch) {
        if changes.revision <= self.revision {
            return;
        }
        for event in changes.events.iter() {
            self.set(&event.key, event.now.as_ref(), batch);
        }
        self.revision = changes.revision;
        batch.revision = changes.revision;
    }

    /// What differs between an older view and this one, for a reader that held the older.
    #[must_use]
    pub fn changes_since(&self, older: &Self) -> Batch {
        let mut batch = Batch {
            revision: self.revision,
            replicas: self.control_plane.other_replicas(&older.control_plane),
            events: self.control_plane.other_events(&older.control_plane),
            listeners: self.proxies != older.proxies,
            ..Batch::default()
        };
        for name in self.nodes.keys().chain(older.nodes.keys()) {
            let (new, old) = (self.nodes.get(name), older.nodes.get(name));
            if new != old {
                batch.nodes.insert(Arc::clone(name));
                for entry in [new, old].into_iter().flatten() {
                    for service in entry.services.keys() {
                        batch.mark_all_changed(service);
                    }
                }
            }
        }
        for name in self.claims.services().chain(older.claims.services()) {
            let (new, old) = (self.claims.stored(name), older.claims.stored(name));
            if !new.eq(old) {
                let stored = self.claims.stored(name).chain(older.claims.stored(name));
                let paths = stored.map(|(proto, _)| (Arc::clone(proto), name.clone()));
                batch.paths.extend(paths);
                if self.services.contains_key(name) {
                    batch.services.insert(name.clone());
                }
            }
        }
        for name in self.services.keys().chain(older.services.keys()) {
            if self.services.get(name) != older.services.get(name) {
                batch.mark_all_changed(name);
                let claims = self.claim(name).protos.into_iter();
                let claims = claims.chain(older.claim(name).protos);
                batch
                    .paths
                    .extend(claims.map(|proto| (proto, name.clone())));
                let instances = self.instances(name).chain(older.instances(name));
                batch
                    .nodes
                    .extend(instances.map(|instance| Arc::clone(&instance.node)));
            }
        }
        batch
    }

    fn set(&mut self, key: &str, value: Option<&KeyValue>, batch: &mut Batch) {
        match keys::parse(key) {
            Some(keys::Key::Instance(name)) => self.set_instance(&name, value, batch),
            Some(keys::Key::Node(name)) => self.set_node(name, value, batch),
            Some(keys::Key::Alive(name)) => self.set_alive(name, value, batch),
            Some(keys::Key::Service(name)) => self.set_service(name, value, batch),
            Some(keys::Key::Schema(sha256)) => keep(&mut self.schemas, sha256, value.is_some()),
            Some(keys::Key::MarkedSchema(sha256)) => {
                keep(&mut self.marked, sha256, value.is_some());
            }
            Some(keys::Key::Clash(name)) => self.set_clash(name, value, batch),
            Some(keys::Key::Replica(name)) => {
                batch.replicas |= self.control_plane.set_replica(name, value)
            }
            Some(keys::Key::Duty(name)) => {
                batch.replicas |= self.control_plane.set_duty(name, value)
            }
            Some(keys::Key::Event(id)) => batch.events |= self.control_plane.set_event(id, value),
            Some(keys::Key::Claim { proto, service }) => {
                self.set_claim(proto, &service, value, batch);
            }
            None => {}
        }
    }

    fn set_instance(&mut self, key: &InstanceKey, value: Option<&KeyValue>, batch: &mut Batch) {
        let new = value.and_then(|value| {
            let record = InstanceRecord::decode(value.value.clone()).ok();
            let instance = record.and_then(|record| Instance::parse(key, record));
            if instance.is_none() {
                tracing::error!(key = %value.key, "a record of the store cannot be read; left out");
            }
            instance.map(Arc::new)
        });
        if self.instance(key) == new.as_ref() {
            // Written again unchanged (a reconnect): no client has to hear of it.
            return;
        }
        let claimed = self.claim(&key.service);
        self.take_instance(key);
        if let Some(new) = new {
            self.put_instance(key, new);
        }
        self.settle(&key.service, claimed, batch);
        batch.mark_changed(&key.service, (Arc::clone(&key.node), Arc::clone(&key.id)));
        batch.nodes.insert(Arc::clone(&key.node));
    }

    fn take_instance(&mut self, key: &InstanceKey) {
        let Some(service) = self.services.get_mut(&key.service) else {
            return;
        };
        let id = (Arc::clone(&key.node), Arc::clone(&key.id));
        let Some(instance) = service.instances.remove(&id) else {
            return;
        };
        for proto in &instance.protos {
            release(&mut service.protos, proto.name.as_str());
            if instance.claim_paths {
                release(&mut service.claimed, proto.name.as_str());
            }
        }
        if instance.claim_paths {
            service.claiming = service.claiming.saturating_sub(1);
        }
        if let Some(entry) = self.nodes.get_mut(&key.node) {
            release(&mut entry.services, &key.service);
            self.forget_empty(&key.node);
        }
        self.instances = self.instances.saturating_sub(1);
    }

    fn put_instance(&mut self, key: &InstanceKey, instance: Arc<Instance>) {
        let service = self.services.entry(key.service.clone()).or_default();
        for proto in &instance.protos {
            let name = proto.name.as_str();
            *service.protos.entry(name.into()).or_default() += 1;
            if instance.claim_paths {
                *service.claimed.entry(name.into()).or_default() += 1;
            }
        }
        service.claiming += usize::from(instance.claim_paths);
        let node = self.nodes.entry(Arc::clone(&key.node)).or_default();
        *node.services.entry(key.service.clone()).or_default() += 1;
        service
            .instances
            .insert((Arc::clone(&key.node), Arc::clone(&key.id)), instance);
        self.instances += 1;
    }

    fn set_service(&mut self, name: ServiceName, value: Option<&KeyValue>, batch: &mut Batch) {
        let record = value.map(|value| {
            // The key alone says that the service is known.
            let record = ServiceRecord::decode(value.value.clone()).unwrap_or_else(|error| {
                tracing::error!(key = %value.key, %error, "a record of the store cannot be read; left out");
                ServiceRecord::default()
            });
            Record {
                known: Arc::new(KnownService::parse(record)),
                created: value.create_revision,
                modified: value.mod_revision,
            }
        });
        if record.is_none() && !self.services.contains_key(&name) {
            return;
        }
        let before = self.services.get(&name).map(|it| it.stands_in().cloned());
        let claimed = self.claim(&name);
        self.services.entry(name.clone()).or_default().record = record;
        self.settle(&name, claimed, batch);
        if before != self.services.get(&name).map(|it| it.stands_in().cloned()) {
            batch.services.insert(name);
        }
    }

    fn set_claim(
        &mut self,
        proto: &str,
        service: &ServiceName,
        value: Option<&KeyValue>,
        batch: &mut Batch,
    ) {
        let claim = value.map(|value| StoredClaim {
            created: value.create_revision,
            modified: value.mod_revision,
            // The key alone says that the path is claimed.
            record: ClaimRecord::decode(value.value.clone()).unwrap_or_default(),
        });
        if !self.claims.set(service, proto, claim) {
            return;
        }
        batch.paths.insert((proto.into(), service.clone()));
        let claims = |service: &Service| service.claim().protos.iter().any(|it| **it == *proto);
        if self.services.get(service).is_some_and(claims) {
            batch.services.insert(service.clone());
        }
    }

    fn claim(&self, name: &ServiceName) -> Claimed {
        self.services
            .get(name)
            .map(Service::claim)
            .unwrap_or_default()
    }

    /// A service has changed: it goes if nothing is left of it, and claims what it claims now.
    fn settle(&mut self, name: &ServiceName, claimed: Claimed, batch: &mut Batch) {
        if self.services.get(name).is_some_and(Service::is_gone) {
            self.services.remove(name);
        }
        let now = self.claim(name);
        self.claims.change(name, claimed, now, &mut batch.paths);
    }

    fn set_node(&mut self, name: &str, value: Option<&KeyValue>, batch: &mut Batch) {
        let new = value.and_then(|value| {
            let record = NodeRecord::decode(value.value.clone()).ok();
            let node = record.and_then(|record| Node::parse(name, record));
            if node.is_none() {
                tracing::error!(key = %value.key, "a record of the store cannot be read; left out");
            }
            node
        });
        let entry = self.nodes.entry(name.into()).or_default();
        let new = new.map(|node| node.with_lease(entry.alive.as_ref()));
        let new = new.map(|node| node.with_clash(entry.clash.as_ref()));
        if entry.record == new {
            self.forget_empty(name);
            return;
        }
        if entry.record.as_ref().map(Node::seen_by_clients)
            != new.as_ref().map(Node::seen_by_clients)
        {
            for service in entry.services.keys() {
                let instances = self.services.get(service).into_iter();
                for id in instances.flat_map(|it| it.ids_on(name)) {
                    batch.mark_changed(service, id.clone());
                }
            }
        }
        batch.listeners |= self.proxies.change(entry.record.as_ref(), new.as_ref());
        entry.record = new;
        batch.nodes.insert(name.into());
        self.forget_empty(name);
    }

    fn set_alive(&mut self, name: &str, value: Option<&KeyValue>, batch: &mut Batch) {
        let new = value.map(Alive::parse);
        let entry = self.nodes.entry(name.into()).or_default();
        if entry.alive != new {
            batch.nodes.insert(name.into());
            let old = entry.record.take();
            entry.record = old.clone().map(|node| node.with_lease(new.as_ref()));
            batch.listeners |= self.proxies.change(old.as_ref(), entry.record.as_ref());
            entry.alive = new;
        }
        self.forget_empty(name);
    }

    fn set_clash(&mut self, name: &str, value: Option<&KeyValue>, batch: &mut Batch) {
        let new = value.map(Clash::parse);
        let entry = self.nodes.entry(name.into()).or_default();
        if entry.clash != new {
            batch.nodes.insert(name.into());
            entry.record = entry
                .record
                .take()
                .map(|node| node.with_clash(new.as_ref()));
            entry.clash = new;
        }
        self.forget_empty(name);
    }

    fn forget_empty(&mut self, node: &str) {
        if self
            .nodes
            .get(node)
            .is_some_and(|entry| *entry == NodeEntry::default())
        {
            self.nodes.remove(node);
        }
    }
}

fn keep(names: &mut BTreeSet<Arc<str>>, name: &str, is_there: bool) {
    if is_there {
        names.insert(name.into());
    } else {
        names.remove(name);
    }
}

/// Counts one down.
fn release<K: Ord + Borrow<Q>, Q: Ord + ?Sized>(counts: &mut BTreeMap<K, usize>, key: &Q) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => {
            counts.remove(key);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests;
