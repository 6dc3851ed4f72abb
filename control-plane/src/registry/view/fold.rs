//! Applies the store's events to the view: one function per kind of key. Each adds its changes to the batch.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_proto::store::v1::{ClaimRecord, InstanceRecord, NodeRecord, ServiceRecord};
use prost::Message as _;

use super::{
    Batch, NodeEntry, View,
    claims::{Claimed, StoredClaim},
    service::{Record, Service},
};
use crate::{
    names::{InstanceKey, ServiceName, keys},
    registry::model::{
        Instance, KnownService, Node,
        node::{Alive, Clash},
    },
    store::{Changes, KeyValue, Revision},
};

impl View {
    /// Builds a view from all keys of the store at a revision.
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

    /// Applies one revision's events and adds the changes to `batch`. A revision that was already applied changes
    /// nothing.
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

    /// The differences between an older view and this one, for a reader of the older one.
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
                batch.replicas |= self.control_plane.set_replica(name, value);
            }
            Some(keys::Key::Duty(name)) => {
                batch.replicas |= self.control_plane.set_duty(name, value);
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
                tracing::error!(key = %value.key, "cannot decode a record of the store; ignored");
            }
            instance.map(Arc::new)
        });
        if self.instance(key) == new.as_ref() {
            // Written again without a change (after a reconnect): no client needs an update.
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
        self.instance_bytes = self.instance_bytes.saturating_sub(instance.memory_bytes());
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
        self.instance_bytes += instance.memory_bytes();
        service
            .instances
            .insert((Arc::clone(&key.node), Arc::clone(&key.id)), instance);
        self.instances += 1;
    }

    fn set_service(&mut self, name: ServiceName, value: Option<&KeyValue>, batch: &mut Batch) {
        let record = value.map(|value| {
            // The key's existence alone means that the service is known, even if its record cannot be decoded.
            let record = ServiceRecord::decode(value.value.clone()).unwrap_or_else(|error| {
                tracing::error!(key = %value.key, %error, "cannot decode a record of the store; ignored");
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
            // The key's existence alone means that the path is claimed, even if its record cannot be decoded.
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

    pub(super) fn claim(&self, name: &ServiceName) -> Claimed {
        self.services
            .get(name)
            .map(Service::claim)
            .unwrap_or_default()
    }

    /// Completes a change of a service: removes it if it has neither an instance nor a record, and updates its claims.
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
                tracing::error!(key = %value.key, "cannot decode a record of the store; ignored");
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

/// Decrements a count; removes it at zero.
pub(super) fn release<K: Ord + Borrow<Q>, Q: Ord + ?Sized>(
    counts: &mut BTreeMap<K, usize>,
    key: &Q,
) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => {
            counts.remove(key);
        }
        None => {}
    }
}
