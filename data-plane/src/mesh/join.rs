//! Joins this node's instances with the control plane's view. A service exists if either source names it. Its endpoints
//! on this node come from the agent alone, because the control plane's view of them is always older; all others come
//! from xDS. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use heddle_proto::{control::v1 as control, registry::v1::Health as OwnHealth};

use super::{LocalNode, known::KnownServices, uids::Uids};
use crate::{
    agent::{
        instance_table::{ClaimOrder, View, Views},
        key::InstanceKey,
    },
    balance::endpoints::{Endpoint, Health, Target},
    route::{ProtoService, Protocol, Rank},
    xds::{self, translate},
};

/// One service before it is put into a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    pub service: String,
    pub namespace: String,
    pub protocol: Protocol,
    pub protos: Vec<ProtoService>,
    /// Why `protos` is empty.
    pub schema_reason: String,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The endpoints of other nodes are known. Also true for a service that the control plane has not named.
    pub endpoints_known: bool,
}

impl Default for ServiceSpec {
    fn default() -> Self {
        Self {
            service: String::new(),
            namespace: String::new(),
            protocol: Protocol::default(),
            protos: Vec::new(),
            schema_reason: String::new(),
            endpoints: Vec::new(),
            endpoints_known: true,
        }
    }
}

/// The descriptors of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaClaim {
    pub service: String,
    /// Hashes, the best first: that of the control plane (which most ready instances have), then those of this node's
    /// instances.
    pub hashes: Vec<String>,
    /// Proto services that it implements.
    pub protos: Vec<String>,
    /// Those of `protos` whose calls by path it gets.
    pub owned: Vec<String>,
    /// The number of its ready instances.
    pub ready: usize,
}

/// The content of a table.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub services: BTreeMap<String, Arc<ServiceSpec>>,
    pub locals: HashMap<u64, InstanceKey>,
    pub schemas: Vec<SchemaClaim>,
}

/// Joins views, and remembers what each cluster was converted to: most of the mesh is the same in the next table.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    uids: Uids,
    clusters: BTreeMap<String, (xds::Cluster, Arc<ServiceSpec>)>,
    pub(super) known: KnownServices,
}

impl Joiner {
    /// See the module documentation.
    pub(super) fn join(
        &mut self,
        local_node: &LocalNode,
        own: &Views,
        order: &ClaimOrder,
        xds: &xds::View,
        now: Instant,
    ) -> Joined {
        let mut joined = Joined::default();
        let mut with_own = BTreeSet::new();
        self.clusters
            .retain(|name, _| xds.clusters.contains_key(name));
        for (name, cluster) in &xds.clusters {
            if let Some(spec) = self.others(local_node, name, cluster) {
                joined.services.insert(name.clone(), spec);
            }
        }
        for (key, view) in own {
            let name = key.full_service();
            let service = name.clone();
            let uid = self.uids.get(
                &name,
                &local_node.node,
                &key.id,
                Target::Local(view.address),
            );
            with_own.insert(name.clone());
            let spec = joined.services.entry(name).or_insert_with(|| {
                Arc::new(ServiceSpec {
                    service: key.service.clone(),
                    namespace: key.namespace.clone(),
                    protocol: translate::protocol(view.instance.protocol),
                    ..ServiceSpec::default()
                })
            });
            let spec = Arc::make_mut(spec);
            let claims = view.claims_paths();
            merge_protos(&mut spec.protos, &view.protos, |proto| {
                let number = claims.then(|| order.number(&service, proto))?;
                Some(number.map_or(Rank::Unordered, Rank::Local))
            });
            if !spec.protos.is_empty() {
                spec.schema_reason.clear();
            } else if !view.schema_reason.is_empty() {
                // The observation of this node is newer than the control plane's.
                spec.schema_reason.clone_from(&view.schema_reason);
            }
            spec.endpoints
                .push(Arc::new(own_endpoint(local_node, key, view, uid)));
            joined.locals.insert(uid, key.clone());
        }
        self.known.complete(&mut joined.services, &with_own, now);
        joined.schemas = joined
            .services
            .iter()
            .map(|(name, spec)| claim(name, spec, own, xds))
            .collect();
        let endpoints = || joined.services.values().flat_map(|spec| &spec.endpoints);
        self.uids
            .prune(endpoints().count(), endpoints().map(|e| e.uid));
        joined
    }

    /// When `join` must run again even if nothing happens.
    pub(super) fn next(&self) -> Option<Instant> {
        self.known.next()
    }

    /// The service as other nodes have it.
    fn others(
        &mut self,
        local_node: &LocalNode,
        name: &str,
        cluster: &xds::Cluster,
    ) -> Option<Arc<ServiceSpec>> {
        if let Some((old, spec)) = self.clusters.get(name)
            && old.assignment.as_ref().map(Arc::as_ptr)
                == cluster.assignment.as_ref().map(Arc::as_ptr)
            && old.index.as_ref().map(Arc::as_ptr) == cluster.index.as_ref().map(Arc::as_ptr)
        {
            return Some(Arc::clone(spec));
        }
        // `translate` has checked the name.
        let (service, namespace) = translate::split_name(name).ok()?;
        let mut spec = ServiceSpec {
            service: service.into(),
            namespace: namespace.into(),
            endpoints_known: cluster.assignment.is_some(),
            ..ServiceSpec::default()
        };
        if let Some(index) = &cluster.index {
            spec.protocol = index.protocol;
            spec.protos.clone_from(&index.protos);
            spec.schema_reason.clone_from(&index.schema_reason);
            spec.protos.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let others = cluster
            .assignment
            .iter()
            .flat_map(|assignment| &assignment.endpoints)
            .filter(|r| *r.node != *local_node.node);
        for remote in others {
            let endpoint = remote_endpoint(name, remote, &mut self.uids);
            spec.endpoints.push(Arc::new(endpoint));
        }
        let spec = Arc::new(spec);
        self.clusters
            .insert(name.to_owned(), (cluster.clone(), Arc::clone(&spec)));
        Some(spec)
    }
}

fn remote_endpoint(service: &str, remote: &xds::Remote, uids: &mut Uids) -> Endpoint {
    let target = Target::Node(remote.inbound);
    Endpoint {
        uid: uids.get(service, &remote.node, &remote.id, target),
        id: Arc::clone(&remote.id),
        node: Arc::clone(&remote.node),
        version: Arc::clone(&remote.version),
        target,
        weight: remote.weight,
        health: remote.health,
        region: Arc::clone(&remote.region),
        zone: Arc::clone(&remote.zone),
    }
}

fn own_endpoint(local_node: &LocalNode, key: &InstanceKey, view: &View, uid: u64) -> Endpoint {
    Endpoint {
        uid,
        id: key.id.as_str().into(),
        node: local_node.node.as_str().into(),
        version: view.instance.version.as_str().into(),
        target: Target::Local(view.address),
        weight: view.instance.weight.max(1),
        health: match view.health {
            OwnHealth::Healthy => Health::Healthy,
            OwnHealth::Draining => Health::Draining,
            OwnHealth::Unknown => Health::Unknown,
            OwnHealth::Unhealthy | OwnHealth::Unspecified => Health::Unhealthy,
        },
        region: local_node.region.as_str().into(),
        zone: local_node.zone.as_str().into(),
    }
}

/// Merges `more` into `protos`, sorted by name. A method counts as idempotent only if every instance that serves its
/// proto service declares it so, as in the control plane's index, because a retry may reach any of them. `rank` ranks
/// the new claims; a claim from the control plane is kept.
pub(super) fn merge_protos(
    protos: &mut Vec<ProtoService>,
    more: &[control::ProtoService],
    rank: impl Fn(&str) -> Option<Rank>,
) {
    for proto in more {
        match protos.binary_search_by(|p| p.name.as_str().cmp(&proto.name)) {
            Ok(at) => {
                if let Some(known) = protos.get_mut(at) {
                    known
                        .idempotent_methods
                        .retain(|method| proto.idempotent_methods.contains(method));
                    known.claim = known.claim.or_else(|| rank(&proto.name));
                }
            }
            Err(at) => {
                let claim = rank(&proto.name);
                protos.insert(at, translate::proto_service(proto.clone(), claim));
            }
        }
    }
}

fn claim(name: &str, spec: &ServiceSpec, own: &Views, xds: &xds::View) -> SchemaClaim {
    let mut hashes = Vec::new();
    let index = xds.clusters.get(name).and_then(|c| c.index.as_ref());
    if let Some(hash) = index.map(|i| &i.schema_sha256).filter(|h| !h.is_empty()) {
        hashes.push(hash.clone());
    }
    let mut of_own: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, view) in own {
        if let Some(schema) = view.schema.as_ref().filter(|_| key.full_service() == name) {
            let healthy = usize::from(view.health == OwnHealth::Healthy);
            *of_own.entry(&schema.sha256).or_default() += healthy;
        }
    }
    let mut of_own: Vec<_> = of_own.into_iter().collect();
    of_own.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    for (hash, _) in of_own {
        if !hashes.iter().any(|known| known == hash) {
            hashes.push(hash.to_owned());
        }
    }
    SchemaClaim {
        service: name.to_owned(),
        hashes,
        protos: spec.protos.iter().map(|p| p.name.clone()).collect(),
        owned: Vec::new(),
        ready: spec.endpoints.iter().filter(|e| e.health.usable()).count(),
    }
}
