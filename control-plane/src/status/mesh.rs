//! `heddle.status.v1.MeshStatus`. What the view contains is answered from it and is equal on every replica. Lists that
//! depend on streams ask all replicas and name those that did not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_proto::{
    paths::{ByPath, Owner},
    registry::v1::Health,
    status::v1::{
        GetMeshRequest, GetServiceRequest, Instance, ListEdgesRequest, ListEdgesResponse,
        ListProxiesRequest, ListProxiesResponse, ListServicesRequest, ListServicesResponse, Mesh,
        Node, Path, Replica, Service, WatchEventsRequest,
        mesh_status_server::{MeshStatus, MeshStatusServer},
    },
};
use tokio::time::Instant;
use tonic::{Request, Response};

use crate::{
    load::Loads,
    names::ServiceName,
    registry::{self, CALLERS, Membership, Registry, View},
    replica::{Peers, own_clients},
    snapshot::{ServiceContent, hidden_from_direct_clients},
    xds::Clients,
};

use super::{
    edges,
    events::{self, Events},
    proxies,
    shared::Shared,
    verdict,
};

/// How many names are suggested for one that does not exist.
const SUGGESTIONS: usize = 3;
/// Longest name that is looked up; a full name has at most 127 bytes.
const MAX_NAME_BYTES: usize = 256;

/// Answers status questions. The answers that take long, because they are about the whole mesh or need other replicas,
/// are shared by those that ask at the same time.
pub struct Status {
    sources: Sources,
    meshes: Shared<Mesh>,
    proxies: Arc<Shared<ListProxiesResponse>>,
    edges: Shared<ListEdgesResponse>,
}

/// What answers are made of.
#[derive(Clone)]
struct Sources {
    registry: Registry,
    membership: Membership,
    clients: Clients,
    loads: Loads,
    peers: Peers,
}

/// The service for a server.
#[must_use]
pub fn service(
    membership: Membership,
    clients: Clients,
    loads: Loads,
    peers: Peers,
) -> MeshStatusServer<Status> {
    MeshStatusServer::new(Status {
        sources: Sources {
            registry: membership.registry().clone(),
            membership,
            clients,
            loads,
            peers,
        },
        meshes: Shared::default(),
        proxies: Arc::default(),
        edges: Shared::default(),
    })
}

#[tonic::async_trait]
impl MeshStatus for Status {
    type WatchEventsStream = Events;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Events>, tonic::Status> {
        let registry = &self.sources.registry;
        let now = (registry.options().wall_ms)();
        let filter = events::Filter::parse(request.into_inner(), now)?;
        Ok(Response::new(events::watch(registry.clone(), filter)))
    }

    async fn get_mesh(&self, _: Request<GetMeshRequest>) -> Result<Response<Mesh>, tonic::Status> {
        let (sources, proxies) = (self.sources.clone(), Arc::clone(&self.proxies));
        let mesh = self.meshes.get(|| async move {
            let all = proxies.get(|| sources.clone().proxies()).await;
            sources.mesh(&all.unwrap_or_default())
        });
        answer(mesh.await)
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, tonic::Status> {
        let namespace = request.into_inner().namespace;
        let services = self.sources.registry.read(|view| {
            view.services()
                .filter(|name| namespace.is_empty() || name.namespace == namespace)
                .filter_map(|name| service_of(view, name))
                .collect()
        });
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn get_service(
        &self,
        request: Request<GetServiceRequest>,
    ) -> Result<Response<Service>, tonic::Status> {
        let requested = request.into_inner().name;
        let name = self.find("name", &requested)?;
        let found = self
            .sources
            .registry
            .read(|view| service_of(view, &name).ok_or_else(|| not_found(view, &requested)));
        Ok(Response::new(found?))
    }

    async fn list_proxies(
        &self,
        _: Request<ListProxiesRequest>,
    ) -> Result<Response<ListProxiesResponse>, tonic::Status> {
        answer(self.proxies.get(|| self.sources.clone().proxies()).await)
    }

    async fn list_edges(
        &self,
        request: Request<ListEdgesRequest>,
    ) -> Result<Response<ListEdgesResponse>, tonic::Status> {
        let requested = request.into_inner().service;
        let service = if requested.is_empty() {
            None
        } else {
            Some(self.find("service", &requested)?.to_string())
        };
        let all = self.edges.get(|| self.sources.clone().edges()).await;
        let Some(service) = service else {
            return answer(all);
        };
        let all = computed(all)?;
        let of_service = all.edges.iter().filter(|edge| edge.service == service);
        Ok(Response::new(ListEdgesResponse {
            edges: of_service.cloned().collect(),
            unanswered: all.unanswered.clone(),
        }))
    }
}

/// A shared answer for one of those that asked.
fn answer<T: Clone>(shared: Option<Arc<T>>) -> Result<Response<T>, tonic::Status> {
    Ok(Response::new(Arc::unwrap_or_clone(computed(shared)?)))
}

fn computed<T>(shared: Option<Arc<T>>) -> Result<Arc<T>, tonic::Status> {
    shared.ok_or_else(|| {
        tonic::Status::internal("the answer could not be computed: see this replica's log")
    })
}

impl Sources {
    fn mesh(&self, all: &ListProxiesResponse) -> Mesh {
        let clients = self.clients.len();
        let observations = verdict::Observations {
            proxies: &all.proxies,
            unanswered: &all.unanswered,
            store_away: self.registry.store_away(),
            lags: self.membership.lag().borrow().is_some(),
            replica: &self.registry.options().replica,
        };
        let mut mesh = self.registry.read(|view| {
            let mut mesh = mesh(view);
            verdict::evaluate(&mut mesh, view, &observations);
            mesh
        });
        let mut draining: BTreeMap<&str, u32> = BTreeMap::new();
        for proxy in all.proxies.iter().filter(|proxy| proxy.draining) {
            *draining.entry(&proxy.node_id).or_default() += 1;
        }
        for node in &mut mesh.nodes {
            node.draining = draining.get(&*node.name).copied().unwrap_or_default();
        }
        mesh.clients = count(clients);
        mesh.store = self.registry.store().engine().to_owned();
        mesh.replica.clone_from(&self.registry.options().replica);
        mesh
    }

    /// The clients of all replicas that answer within 2 s.
    async fn proxies(self) -> ListProxiesResponse {
        let own = own_clients(&self.registry, &self.clients);
        let mut answer = proxies::all(own, self.peers.list_clients().await);
        let now = (self.registry.options().wall_ms)();
        self.registry
            .read(|view| proxies::add_lapsed(&mut answer.proxies, view, now));
        answer
    }

    async fn edges(self) -> ListEdgesResponse {
        let own = self.loads.edges(Instant::now());
        edges::all(own, self.peers.list_clients().await)
    }
}

impl Status {
    /// A known service, by the name that a person wrote into this field.
    fn find(&self, field: &str, requested: &str) -> Result<ServiceName, tonic::Status> {
        if requested.is_empty() || requested.len() > MAX_NAME_BYTES {
            return Err(tonic::Status::invalid_argument(format!(
                "{field}: must be \"<service>\" (namespace default) or \"<service>.<namespace>\"",
            )));
        }
        let name = ServiceName::parse(requested);
        self.sources.registry.read(|view| {
            name.filter(|name| view.services().any(|each| each == name))
                .ok_or_else(|| not_found(view, requested))
        })
    }
}

fn mesh(view: &View) -> Mesh {
    let healthy = view
        .services()
        .flat_map(|name| view.instances(name))
        .filter(|instance| view.health(instance) == Health::Healthy)
        .count();
    Mesh {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: view.revision().0,
        nodes: view.nodes().map(|each| node(view, each)).collect(),
        replicas: view.replicas().map(replica).collect(),
        services: count(view.services().count()),
        instances: count(view.instance_count()),
        healthy_instances: count(healthy),
        ..Mesh::default()
    }
}

fn node(view: &View, node: &registry::Node) -> Node {
    Node {
        name: node.name.to_string(),
        epoch: node.epoch,
        advertise: node.advertise.to_string(),
        region: node.region.clone(),
        zone: node.zone.clone(),
        alive: node.alive,
        instances: count(view.instances_on(&node.name)),
        version: node.version.clone(),
        suspect: node.suspect,
        left: node.left,
        draining: 0,
        replica: node.replica.clone(),
        clash: node.clash.as_ref().map(clash).unwrap_or_default(),
    }
}

fn clash(clash: &registry::Clash) -> String {
    match clash.epoch {
        0 => format!("process {}", clash.process_id),
        epoch => format!("process {} (had epoch {epoch})", clash.process_id),
    }
}

fn replica(replica: &registry::Replica) -> Replica {
    Replica {
        name: replica.name.to_string(),
        advertise: replica.advertise.clone(),
        version: replica.version.clone(),
        duties: replica.duties.iter().map(ToString::to_string).collect(),
        xds_streams: u32::try_from(replica.xds_streams).unwrap_or(u32::MAX),
    }
}

fn service_of(view: &View, name: &ServiceName) -> Option<Service> {
    let content = ServiceContent::of(view, name)?;
    let mut hidden = hidden_from_direct_clients(view, name);
    let endpoints: Vec<Instance> = view
        .instances(name)
        .map(|instance| Instance {
            id: instance.id.to_string(),
            node: instance.node.to_string(),
            address: instance.address.to_string(),
            version: instance.version.to_string(),
            health: view.health(instance) as i32,
            health_reason: view.health_reason(instance),
            schema_reason: instance.schema_reason.clone(),
            checked_by: instance.checked_by,
            weight: instance.weight,
            hidden_from_direct_clients: hidden
                .remove(&(Arc::clone(&instance.node), Arc::clone(&instance.id)))
                .unwrap_or_default(),
        })
        .collect();
    let versions: BTreeSet<_> = endpoints
        .iter()
        .map(|each| &each.version)
        .filter(|version| !version.is_empty())
        .collect();
    let healthy = endpoints
        .iter()
        .filter(|each| each.health() == Health::Healthy)
        .count();
    let protos: Vec<String> = content.protos.into_iter().map(|proto| proto.name).collect();
    Some(Service {
        name: content.full_name.to_string(),
        protocol: content.protocol as i32,
        versions: versions.into_iter().cloned().collect(),
        instances: count(endpoints.len()),
        healthy_instances: count(healthy),
        schema_sha256: content
            .schema_sha256
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
        ambiguous_protos: protos
            .iter()
            .filter(|proto| match view.by_path(proto, CALLERS) {
                ByPath::Several(meant) => meant.contains(&name),
                ByPath::Unclaimed | ByPath::One(_) => false,
            })
            .cloned()
            .collect(),
        paths: protos.iter().map(|proto| path(view, proto, name)).collect(),
        protos,
        endpoints,
    })
}

/// Which service gets the calls of a proto service in the namespace of a service that serves it.
fn path(view: &View, proto: &str, service: &ServiceName) -> Path {
    let owner = match view.path_owner(proto, &service.namespace) {
        Owner::One { owner, .. } => Some(owner),
        Owner::Unclaimed | Owner::Unclear(_) => None,
    };
    let stand_in = match view.by_path(proto, &service.namespace) {
        ByPath::One(serves) if owner.is_some_and(|owner| owner != serves) => serves.to_string(),
        ByPath::Unclaimed | ByPath::One(_) | ByPath::Several(_) => String::new(),
    };
    let claimed = view.path_claimants(proto).any(|it| it.service == service);
    Path {
        proto: proto.to_owned(),
        owner: owner.map(ToString::to_string).unwrap_or_default(),
        stand_in,
        claimed,
    }
}

/// Suggests the nearest names, or else gives the number of services.
fn not_found(view: &View, requested: &str) -> tonic::Status {
    let known: Vec<String> = view.services().map(ToString::to_string).collect();
    // The known names are full names: "usrs" alone would be far from "users.default".
    let word = if requested.contains('.') {
        requested.to_owned()
    } else {
        format!("{requested}.default")
    };
    let near = heddle_options::nearest(&word, known.iter().map(String::as_str), SUGGESTIONS);
    let hint = if !near.is_empty() {
        format!("did you mean {}?", near.join(", "))
    } else if known.is_empty() {
        "no service is registered".to_owned()
    } else {
        format!(
            "{} registered (ListServices or `heddle services` names them)",
            heddle_proto::count(known.len(), "service")
        )
    };
    tonic::Status::not_found(format!("no service {requested}: {hint}"))
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::fixture::{self, proto};

    /// Issue 10, D2: `GetService` returned UNKNOWN without a reason.
    #[test]
    fn an_instance_of_a_suspect_node_is_unknown_and_says_why() {
        let mut mesh = fixture::Mesh::new();
        mesh.put("a/users/1", "10.0.0.1:80");
        mesh.put("b/users/2", "10.0.0.2:80").health_reason = "all well".into();
        mesh.node("a").suspect = true;
        let view = mesh.view();
        let users = ServiceName::parse("users").unwrap();
        let service = service_of(&view, &users).unwrap();
        let shown: Vec<_> = service
            .endpoints
            .iter()
            .map(|it| (it.health(), it.health_reason.as_str()))
            .collect();
        let lapsed = "the lease of its node a expired together with many others";
        let expected = [(Health::Unknown, lapsed), (Health::Healthy, "all well")];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_proto_service_is_ambiguous_where_a_call_by_path_may_mean_two() {
        let mut mesh = fixture::Mesh::new();
        for (path, serves) in [
            ("a/users/1", "u.Users"),
            ("a/users.shop/1", "u.Users"),
            ("a/one.shop/1", "x.Other"),
            ("a/two.x/1", "x.Other"),
            ("a/three.x/1", "x.Other"),
        ] {
            mesh.put(path, "10.0.0.1:80").protos = vec![proto(serves, &[])];
        }
        mesh.claim("three.x", "x.Other", 2);
        let view = mesh.view();
        let ambiguous = |name: &str| {
            let name = ServiceName::parse(name).unwrap();
            service_of(&view, &name).unwrap().ambiguous_protos
        };
        let none: [&str; 0] = [];
        assert_eq!(ambiguous("users"), none, "callers are of its namespace");
        assert_eq!(ambiguous("users.shop"), none);
        assert_eq!(ambiguous("three.x"), none, "another owns it there");
        for name in ["one.shop", "two.x"] {
            assert_eq!(ambiguous(name), ["x.Other"], "{name}");
        }
    }

    /// Issue 10, B2: the status shows who owns a path, and who stands in.
    #[test]
    fn a_service_says_who_owns_the_paths_of_what_it_serves() {
        let mut mesh = fixture::Mesh::new();
        for path in ["a/users/1", "a/users-canary/1", "a/quiet/1"] {
            mesh.put(path, "10.0.0.1:80").protos = vec![proto("u.Users", &[])];
        }
        let quiet = mesh.put("a/quiet/1", "10.0.0.1:80");
        quiet.instance.as_mut().unwrap().claim_paths = Some(false);
        mesh.claim("users", "u.Users", 7);
        mesh.claim("users-canary", "u.Users", 8);
        mesh.snapshot();
        let check = |mesh: &fixture::Mesh, stand_in: &str| {
            let view = mesh.view();
            for (name, claimed) in [("users", true), ("users-canary", true), ("quiet", false)] {
                let service = ServiceName::parse(name).unwrap();
                let path = Path {
                    proto: "u.Users".to_owned(),
                    owner: "users.default".to_owned(),
                    stand_in: stand_in.to_owned(),
                    claimed,
                };
                assert_eq!(service_of(&view, &service).unwrap().paths, [path], "{name}");
            }
        };
        check(&mesh, "");
        mesh.remove("a/users/1");
        check(&mesh, "users-canary.default");
        mesh.put("a/other.shop/1", "10.0.0.2:80").protos = vec![proto("u.Users", &[])];
        check(&mesh, "users-canary.default");
        mesh.remove("a/users-canary/1");
        mesh.snapshot();
        let view = mesh.view();
        let users = service_of(&view, &ServiceName::parse("users").unwrap()).unwrap();
        let path = users.paths.first().unwrap();
        let none = "no service of another namespace stands in";
        assert_eq!(
            (&*path.owner, &*path.stand_in),
            ("users.default", ""),
            "{none}"
        );
        assert_eq!(users.ambiguous_protos, [""; 0]);
    }
}
