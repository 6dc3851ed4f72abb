//! The routing table: built by the control side, immutable, and replaced as a whole in each worker between calls. Takes
//! services; gives lookups by name and by proto service. No sockets, no load.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_proto::paths::Rank;
use rustc_hash::FxHashMap;

use crate::balance::endpoints::{Candidates, Endpoint, EndpointSet, Health, Target};
use crate::balance::slow_start::Warming;

mod targets;

use targets::Targets;

/// A service's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// gRPC over HTTP/2, plain.
    #[default]
    Grpc,
    /// Plain HTTP.
    Http,
    /// Refused until there is a listener for it.
    Tcp,
}

/// A proto service that a mesh service implements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtoService {
    /// `package.Service`
    pub name: String,
    /// Methods that are idempotent or have no side effects according to the schema.
    pub idempotent_methods: Vec<String>,
    /// Rank of the service's claim of this path. `None`: it does not claim the path, and is called by its name only.
    pub claim: Option<Rank>,
}

impl Default for ProtoService {
    /// Claimed without an order, as from an older control plane.
    fn default() -> Self {
        Self {
            name: String::new(),
            idempotent_methods: Vec::new(),
            claim: Some(Rank::Unordered),
        }
    }
}

/// One mesh service.
#[derive(Clone, Debug)]
pub struct Service {
    /// `users.default`: the key in all maps.
    pub name: Arc<str>,
    /// `users`
    pub service: Arc<str>,
    /// `default`
    pub namespace: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The proto services that it implements.
    pub protos: Vec<ProtoService>,
    /// Why `protos` is empty, if that is known.
    pub protos_unknown: Arc<str>,
    /// Its instances: all of them, or only those of this node unless `endpoints_known`.
    pub endpoints: Arc<EndpointSet>,
    /// Its endpoints in slow start.
    pub warming: Vec<Warming>,
    /// Its endpoints on other nodes are known. They are fetched when it is first called; until then it is unknown
    /// whether it has any.
    pub endpoints_known: bool,
    /// The usable endpoints by distance; computed by [`Builder::build`].
    pub candidates: Candidates,
    /// The usable endpoints on this node; computed by [`Builder::build`].
    pub locals: Vec<Arc<Endpoint>>,
}

impl Service {
    /// A service with this name and nothing else.
    #[must_use]
    pub fn new(service: &str, namespace: &str) -> Self {
        Self {
            name: format!("{service}.{namespace}").into(),
            service: service.into(),
            namespace: namespace.into(),
            protocol: Protocol::Grpc,
            protos: Vec::new(),
            protos_unknown: Arc::from(""),
            endpoints: Arc::default(),
            warming: Vec::new(),
            endpoints_known: true,
            candidates: Candidates::default(),
            locals: Vec::new(),
        }
    }

    /// Computes the endpoints that calls can be sent to.
    fn prepare(&mut self, region: &str, zone: &str) {
        self.candidates = Candidates::new(&self.endpoints, region, zone, &self.warming);
        let local = |e: &&Arc<Endpoint>| matches!(e.target, Target::Local(_)) && e.health.usable();
        let all = &self.endpoints.endpoints;
        self.locals = all.iter().filter(local).cloned().collect();
    }

    /// The uid of this node's instance with this id, if it accepts calls.
    #[must_use]
    pub fn local_uid(&self, id: &str) -> Option<u64> {
        let found = self.locals.iter().find(|e| *e.id == *id);
        found.map(|endpoint| endpoint.uid)
    }

    /// Whether the schema allows to call this method twice for one call.
    #[must_use]
    pub fn is_idempotent(&self, proto_service: &str, method: &str) -> bool {
        self.protos
            .iter()
            .filter(|proto| proto.name == proto_service)
            .any(|proto| proto.idempotent_methods.iter().any(|name| name == method))
    }
}

/// Which services get the calls of a proto service by path, for one caller.
#[derive(Clone, Copy, Debug)]
pub enum Claim<'t> {
    /// None.
    None,
    /// One mesh service.
    One(&'t Arc<Service>),
    /// Several of other namespaces, or several without an order: not routed by path.
    Many(&'t [Arc<Service>]),
}

/// By the name of a proto service as in paths.
type ByProto<T> = FxHashMap<Box<[u8]>, T>;

/// Everything that the routing of calls depends on, at one moment.
#[derive(Debug)]
pub struct RouteTable {
    node: Arc<str>,
    own_names: Vec<String>,
    ready: bool,
    region: String,
    zone: String,
    /// Sorted by name.
    services: Vec<Arc<Service>>,
    by_name: FxHashMap<Arc<str>, Arc<Service>>,
    by_proto: ByProto<Targets>,
    draining: Vec<u64>,
}

impl RouteTable {
    /// Starts a table for this node; `own_names` are further names of the proxy itself.
    #[must_use]
    pub fn builder(node: &str, own_names: &[String]) -> Builder {
        Builder {
            node: node.into(),
            own_names: own_names.to_vec(),
            ready: true,
            region: String::new(),
            zone: String::new(),
            services: BTreeMap::new(),
        }
    }

    /// The table before there is any state: calls wait for the next one, then fail with NOT_READY.
    #[must_use]
    pub fn empty(node: &str) -> Self {
        let mut builder = Self::builder(node, &[]);
        builder.ready(false);
        builder.build()
    }

    /// Whether there is enough state to route calls.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// The name of this proxy's node.
    #[must_use]
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// Whether an authority's host (lower case) is one of the proxy's own names.
    #[must_use]
    pub fn is_own_name(&self, host: &str) -> bool {
        self.own_names.iter().any(|name| name == host)
    }

    /// Every service, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The uids of this node's instances that drain.
    #[must_use]
    pub fn draining(&self) -> &[u64] {
        &self.draining
    }

    /// The service with this full name.
    #[must_use]
    pub fn service(&self, full_name: &str) -> Option<&Arc<Service>> {
        self.by_name.get(full_name)
    }

    /// The service with these two names; does not allocate.
    #[must_use]
    pub fn service_of(&self, service: &str, namespace: &str) -> Option<&Arc<Service>> {
        let mut name = super::authority::Name::default();
        self.service(name.join(service.as_bytes(), namespace.as_bytes())?)
    }

    /// The service that gets the calls of a proto service: of the caller's namespace if there is one, otherwise of any
    /// other.
    #[must_use]
    pub fn claim(&self, proto_service: impl AsRef<[u8]>, namespace: &str) -> Claim<'_> {
        let Some(targets) = self.by_proto.get(proto_service.as_ref()) else {
            return Claim::None;
        };
        match targets.calls_from(namespace) {
            // It is implemented, but no service claims its path.
            [] => Claim::None,
            [one] => Claim::One(one),
            several => Claim::Many(several),
        }
    }

    /// The owner of a proto service's path in a namespace, even if another service stands in for it.
    #[must_use]
    pub fn path_owner(&self, proto_service: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.by_proto
            .get(proto_service.as_bytes())?
            .owner(namespace)
    }

    /// Services that implement a proto service without claiming its path.
    pub fn unclaimed<'t>(&'t self, proto_service: &str) -> impl Iterator<Item = &'t Arc<Service>> {
        self.services().filter(move |service| {
            let mut protos = service.protos.iter();
            protos.any(|proto| proto.name == proto_service && proto.claim.is_none())
        })
    }

    /// An equal table that shares none of the reference counts used for calls. Each worker has its own, since counting
    /// on a cache line that other cores also write costs more than routing itself.
    #[must_use]
    pub fn copy_for_worker(&self) -> Self {
        let copy = |service: &Arc<Service>| {
            let copied = |e: &Arc<Endpoint>| Arc::new((**e).clone());
            let endpoints = service.endpoints.endpoints.iter().map(copied).collect();
            let mut copy = Service {
                name: Arc::from(&*service.name),
                endpoints: Arc::new(EndpointSet { endpoints }),
                ..(**service).clone()
            };
            copy.prepare(&self.region, &self.zone);
            Arc::new(copy)
        };
        let services: Vec<Arc<Service>> = self.services.iter().map(copy).collect();
        let by_name = index(&services);
        let same = |service: &Arc<Service>| by_name.get(&service.name).cloned();
        let by_proto = self.by_proto.iter();
        let by_proto = by_proto
            .map(|(name, targets)| (name.clone(), targets.map(same)))
            .collect();
        Self {
            node: Arc::clone(&self.node),
            own_names: self.own_names.clone(),
            ready: self.ready,
            region: self.region.clone(),
            zone: self.zone.clone(),
            services,
            by_name,
            by_proto,
            draining: self.draining.clone(),
        }
    }

    /// All proto services that some service implements.
    pub fn proto_services(&self) -> impl Iterator<Item = &str> {
        let names = self.by_proto.keys();
        names.filter_map(|name| std::str::from_utf8(name).ok())
    }
}

/// Collects services and builds the table.
#[derive(Debug)]
pub struct Builder {
    node: Arc<str>,
    own_names: Vec<String>,
    ready: bool,
    region: String,
    zone: String,
    services: BTreeMap<Arc<str>, Service>,
}

impl Builder {
    /// Adds a service, or replaces the one of the same name.
    pub fn service(&mut self, service: Service) {
        self.services.insert(Arc::clone(&service.name), service);
    }

    /// Whether the table has enough state to answer calls; true by default.
    pub fn ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// The locality of this node, for choosing the nearest endpoints.
    pub fn locality(&mut self, region: &str, zone: &str) {
        region.clone_into(&mut self.region);
        zone.clone_into(&mut self.zone);
    }

    /// Computes the owners of paths and the endpoints that are usable from here.
    #[must_use]
    pub fn build(self) -> RouteTable {
        let mut services = Vec::with_capacity(self.services.len());
        let mut claimed: ByProto<Vec<(Arc<Service>, Rank)>> = FxHashMap::default();
        for mut service in self.services.into_values() {
            service.prepare(&self.region, &self.zone);
            let service = Arc::new(service);
            for proto in &service.protos {
                let claims = claimed.entry(proto.name.as_bytes().into()).or_default();
                if let Some(rank) = proto.claim
                    && !claims.iter().any(|(other, _)| Arc::ptr_eq(other, &service))
                {
                    claims.push((Arc::clone(&service), rank));
                }
            }
            services.push(service);
        }
        let by_proto = claimed
            .into_iter()
            .map(|(proto, claims)| (proto, Targets::of(&claims)))
            .collect();
        let endpoints = services.iter().flat_map(|s| &s.endpoints.endpoints);
        let draining = endpoints
            .filter(|e| e.health == Health::Draining && matches!(e.target, Target::Local(_)))
            .map(|e| e.uid)
            .collect();
        let mut own_names: Vec<String> = self
            .own_names
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect();
        own_names.push(self.node.to_ascii_lowercase());
        RouteTable {
            node: self.node,
            own_names,
            ready: self.ready,
            region: self.region,
            zone: self.zone,
            by_name: index(&services),
            services,
            by_proto,
            draining,
        }
    }
}

fn index(services: &[Arc<Service>]) -> FxHashMap<Arc<str>, Arc<Service>> {
    let entry = |service: &Arc<Service>| (Arc::clone(&service.name), Arc::clone(service));
    services.iter().map(entry).collect()
}

#[cfg(test)]
mod tests;
