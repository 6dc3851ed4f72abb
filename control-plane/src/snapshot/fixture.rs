//! A small mesh for tests: records as the store has them, folded by the real view and built by the real builder.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_proto::{
    control::v1::{LocalInstance, ProtoService},
    registry::v1::{Health, Instance},
    store::v1::{InstanceRecord, NodeRecord, ServiceRecord},
};
use prost::Message as _;

use super::{Audience, Builder, Encodes, Kind, Reading, ServiceContent, Snapshot};
use crate::{
    names::{InstanceKey, ServiceName, keys},
    registry::{ChangedInstances, InstanceId, View},
    store::{KeyValue, Revision},
};

pub(crate) struct Mesh {
    nodes: BTreeMap<String, NodeRecord>,
    instances: BTreeMap<InstanceKey, LocalInstance>,
    /// The records of services that had instances.
    known: BTreeMap<ServiceName, ServiceRecord>,
    /// The revisions since which paths are claimed, by proto service; all others since revision 1.
    claimed: BTreeMap<(String, ServiceName), u64>,
    changed: BTreeMap<ServiceName, BTreeSet<InstanceId>>,
    pub(crate) builder: Builder,
    /// Is given the changed instances only, and must give the same result.
    by_instance: Builder,
    pub(crate) encodes: Arc<Encodes>,
    pub(crate) revision: u64,
}

impl Mesh {
    /// Three nodes: `a` and `b` reach the control plane over loopback, `far` does not.
    pub(crate) fn new() -> Self {
        let encodes = Arc::new(Encodes::default());
        let mut mesh = Self {
            nodes: BTreeMap::new(),
            instances: BTreeMap::new(),
            known: BTreeMap::new(),
            claimed: BTreeMap::new(),
            changed: BTreeMap::new(),
            builder: Builder::new(Arc::clone(&encodes)),
            by_instance: Builder::new(Arc::default()),
            encodes,
            revision: 1,
        };
        for (name, advertise, loopback) in [
            ("a", "127.0.0.1:15108", true),
            ("b", "127.0.0.1:15208", true),
            ("far", "10.0.0.9:15008", false),
        ] {
            let record = NodeRecord {
                name: name.to_owned(),
                epoch: 1,
                advertise: advertise.to_owned(),
                loopback,
                ..NodeRecord::default()
            };
            mesh.nodes.insert(name.to_owned(), record);
        }
        mesh
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut NodeRecord {
        let instances: Vec<_> = self.instances.keys().cloned().collect();
        for key in instances.into_iter().filter(|key| &*key.node == name) {
            self.touch(key);
        }
        self.nodes.get_mut(name).unwrap()
    }

    fn touch(&mut self, key: InstanceKey) {
        let changed = self.changed.entry(key.service).or_default();
        changed.insert((key.node, key.id));
    }

    /// Adds or changes "node/service/id".
    pub(crate) fn put(&mut self, path: &str, address: &str) -> &mut LocalInstance {
        let key = key(path);
        self.touch(key.clone());
        let local = self
            .instances
            .entry(key.clone())
            .or_insert_with(|| LocalInstance {
                instance: Some(Instance {
                    service: key.service.service.clone(),
                    namespace: key.service.namespace.clone(),
                    id: key.id.to_string(),
                    ..Instance::default()
                }),
                health: Health::Healthy as i32,
                ..LocalInstance::default()
            });
        local.instance.as_mut().unwrap().address = address.to_owned();
        local
    }

    pub(crate) fn remove(&mut self, path: &str) {
        let key = key(path);
        self.instances.remove(&key);
        self.touch(key);
    }

    /// Sets the revision since which a service claims the path of a proto service.
    pub(crate) fn claim(&mut self, service: &str, proto: &str, since: u64) {
        let service = ServiceName::parse(service).unwrap();
        self.changed.entry(service.clone()).or_default();
        self.claimed.insert((proto.to_owned(), service), since);
    }

    pub(crate) fn view(&self) -> View {
        let entry = |key: String, value: Vec<u8>| KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: None,
        };
        let nodes = self
            .nodes
            .iter()
            .map(|(name, record)| entry(keys::node(name), record.encode_to_vec()));
        let alive = self
            .nodes
            .iter()
            .filter(|(_, record)| !record.suspect && !record.expired)
            .map(|(name, _)| entry(keys::alive(name), Vec::new()));
        let instances = self.instances.iter().map(|(key, local)| {
            let record = InstanceRecord {
                node: key.node.to_string(),
                epoch: 1,
                local: Some(local.clone()),
            };
            entry(keys::instance(key), record.encode_to_vec())
        });
        let services = self
            .known
            .iter()
            .map(|(name, record)| entry(keys::service(name), record.encode_to_vec()));
        let served = self.instances.iter().flat_map(|(key, local)| {
            let protos = local.protos.iter();
            protos.map(|proto| (proto.name.clone(), key.service.clone()))
        });
        let known = self.known.iter().flat_map(|(name, record)| {
            let protos = record.protos.iter();
            protos.map(|proto| (proto.name.clone(), name.clone()))
        });
        let paths: BTreeSet<_> = served.chain(known).collect();
        let claims = paths.into_iter().map(|path| {
            let since = self.claimed.get(&path).copied().unwrap_or(1);
            KeyValue {
                create_revision: Revision(since),
                ..entry(keys::claim(&path.0, &path.1), Vec::new())
            }
        });
        let items: Vec<_> = nodes
            .chain(alive)
            .chain(instances)
            .chain(services)
            .chain(claims)
            .collect();
        View::load(Revision(self.revision), &items)
    }

    /// The next snapshot, with everything that changed since the last.
    pub(crate) fn snapshot(&mut self) -> Arc<Snapshot> {
        self.revision += 1;
        for (key, local) in &self.instances {
            let record = ServiceRecord {
                protocol: local.instance.as_ref().unwrap().protocol,
                protos: local.protos.clone(),
                schema_sha256: local.schema_sha256.clone(),
                no_paths: false,
            };
            self.known.insert(key.service.clone(), record);
        }
        let view = self.view();
        let changed = std::mem::take(&mut self.changed);
        let contents = changed.keys().map(|name| {
            let full: Arc<str> = name.to_string().into();
            (full, ServiceContent::of(&view, name))
        });
        let before = self.builder.snapshot().generation;
        self.builder
            .apply(self.revision, contents.collect::<Vec<_>>());
        assert_eq!(super::check(self.builder.snapshot(), before), []);
        let readings = changed.into_iter().map(|(name, places)| {
            Reading::of(&view, &name, Some(&ChangedInstances::These(places)))
        });
        self.by_instance.update(self.revision, readings);
        let versions = |builder: &Builder| {
            let snapshot = builder.snapshot().clone();
            let tables = Kind::ALL
                .into_iter()
                .flat_map(|kind| Audience::ALL.map(|audience| (kind, audience)));
            tables
                .flat_map(|(kind, audience)| {
                    let table = snapshot.table(kind, audience).values();
                    table
                        .map(|it| (kind, audience, it.name.to_string(), it.version.to_string()))
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(versions(&self.by_instance), versions(&self.builder));
        Arc::new(self.builder.snapshot().clone())
    }

    /// The newest snapshot of the builder that is given the changed instances only.
    pub(crate) fn by_instance(&self) -> &Snapshot {
        self.by_instance.snapshot()
    }

    /// The next snapshot, without a service.
    pub(crate) fn forget(&mut self, full_name: &str) -> Arc<Snapshot> {
        self.revision += 1;
        self.known.remove(&ServiceName::parse(full_name).unwrap());
        let before = self.builder.snapshot().generation;
        self.builder
            .apply(self.revision, [(full_name.into(), None)]);
        assert_eq!(super::check(self.builder.snapshot(), before), []);
        self.by_instance
            .apply(self.revision, [(full_name.into(), None)]);
        Arc::new(self.builder.snapshot().clone())
    }
}

pub(crate) fn proto(name: &str, idempotent: &[&str]) -> ProtoService {
    ProtoService {
        name: name.to_owned(),
        idempotent_methods: idempotent.iter().map(ToString::to_string).collect(),
    }
}

fn key(path: &str) -> InstanceKey {
    let mut parts = path.split('/');
    let mut next = || parts.next().unwrap();
    InstanceKey {
        node: next().into(),
        service: ServiceName::parse(next()).unwrap(),
        id: next().into(),
    }
}
