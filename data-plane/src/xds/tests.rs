//! The stream against a small ADS server whose every word the test says.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster as ClusterProto,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::{
                Address, HealthStatus, Locality, Metadata, SocketAddress, address,
                socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                lb_endpoint::HostIdentifier,
            },
        },
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource,
            aggregated_discovery_service_server::{
                AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
            },
        },
    },
    google::protobuf::{Any, Struct, Value, value::Kind},
};
use futures_util::Stream;
use heddle_proto::{
    control::v1::ProtoService,
    xds::v1::{Schema, ServiceIndex},
};
use prost::{Message, bytes::Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    ASSIGNMENT, CLUSTER, Callers, INDEX, SCHEMA, View,
    client::{Asker, XdsClient, XdsHandle},
    demand::{Demand, Fetches, Prefetch},
    last_good,
    resources::Resources,
    schemas::Schemas,
    translate::{self, Remote},
};
use crate::{
    agent::schema::sha256_hex,
    balance::endpoints::Health,
    observe::load::{LocalityLoad, Use},
    state_dir::StateDir,
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Visit {
    requests: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonces: u64,
}

struct Ads {
    visits: mpsc::Sender<Visit>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let visit = Visit {
            requests: request.into_inner(),
            answers,
            nonces: 0,
        };
        self.visits
            .send(visit)
            .await
            .map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn ads() -> (SocketAddr, mpsc::Receiver<Visit>) {
    let (visits, received) = mpsc::channel(4);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = AggregatedDiscoveryServiceServer::new(Ads { visits });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (addr, received)
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(10), future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within 10 s"))
}

impl Visit {
    async fn next(&mut self) -> DeltaDiscoveryRequest {
        soon("a request", self.requests.message())
            .await
            .unwrap()
            .unwrap()
    }

    /// The first questions: all services by name, and clusters and endpoints of those wanted; by type.
    async fn opening(&mut self, wanted: &[&str]) -> HashMap<String, DeltaDiscoveryRequest> {
        let first = self.next().await;
        let node = first.node.clone().expect("the node on the first request");
        assert_eq!(
            (node.id.as_str(), node.user_agent_name.as_str()),
            ("a", "heddle-proxy")
        );
        let fields = node.metadata.unwrap().fields;
        assert_eq!(fields["role"].kind, Some(Kind::StringValue("proxy".into())));
        assert_eq!(first.type_url, INDEX);
        assert_eq!(first.resource_names_subscribe, ["*"]);
        let mut questions = HashMap::from([(INDEX.to_owned(), first)]);
        if !wanted.is_empty() {
            questions.extend(self.asked_for(wanted, &[]).await);
        }
        questions
    }

    /// Clusters and endpoints of these are asked for, and no longer of those.
    async fn asked_for(
        &mut self,
        wanted: &[&str],
        left: &[&str],
    ) -> HashMap<String, DeltaDiscoveryRequest> {
        let mut questions = HashMap::new();
        for kind in [CLUSTER, ASSIGNMENT] {
            let request = self.next().await;
            assert_eq!(request.type_url, kind);
            assert!(request.node.is_none(), "the node on the first request only");
            assert_eq!(request.resource_names_subscribe, wanted);
            assert_eq!(request.resource_names_unsubscribe, left);
            questions.insert(kind.to_owned(), request);
        }
        questions
    }

    async fn send(&mut self, type_url: &str, resources: Vec<Resource>, removed: &[&str]) {
        self.send_part(type_url, resources, removed, "").await;
    }

    /// With a mark behind the revision.
    async fn send_part(
        &mut self,
        type_url: &str,
        resources: Vec<Resource>,
        removed: &[&str],
        mark: &str,
    ) {
        self.nonces += 1;
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            system_version_info: format!("{}{mark}", 100 + self.nonces),
            nonce: format!("n{}", self.nonces),
            resources,
            removed_resources: removed.iter().map(|&r| r.to_owned()).collect(),
            ..Default::default()
        };
        self.answers.send(Ok(response)).await.unwrap();
    }

    /// The answer to the last response: the reason if it was rejected.
    async fn answered(&mut self) -> Option<String> {
        let request = self.next().await;
        assert_eq!(
            request.response_nonce,
            format!("n{}", self.nonces),
            "{request:?}"
        );
        request.error_detail.map(|e| e.message)
    }

    /// These are all services there are.
    async fn name(&mut self, services: &[&str]) {
        let named = services.iter().map(|name| index(name, "p.P", ""));
        self.send(INDEX, named.collect(), &[]).await;
        assert_eq!(self.answered().await, None);
    }

    /// Answers for services with one endpoint each, sent and acknowledged.
    async fn fill(&mut self, services: &[(&str, &str)]) {
        let clusters = services.iter().map(|(name, _)| cluster(name)).collect();
        self.send(CLUSTER, clusters, &[]).await;
        assert_eq!(self.answered().await, None);
        let endpoints = services
            .iter()
            .map(|(name, inbound)| assignment(name, &[("b", "i1", inbound)]))
            .collect();
        self.send(ASSIGNMENT, endpoints, &[]).await;
        assert_eq!(self.answered().await, None);
    }
}

fn resource(type_url: &str, name: &str, version: &str, message: &impl Message) -> Resource {
    let value = message.encode_to_vec();
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any {
            type_url: type_url.into(),
            value,
        }),
        ..Default::default()
    }
}

fn cluster(name: &str) -> Resource {
    let cluster = ClusterProto {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        ..Default::default()
    };
    resource(CLUSTER, name, "c1", &cluster)
}

fn lb_endpoint(node: &str, id: &str, inbound: &str) -> LbEndpoint {
    let word = |w: &str| Value {
        kind: Some(Kind::StringValue(w.into())),
    };
    let fields = [
        ("instance", id),
        ("node", node),
        ("version", "v2"),
        ("inbound", inbound),
    ]
    .map(|(key, value)| (key.to_owned(), word(value)));
    let metadata = Metadata {
        filter_metadata: [(
            "heddle".to_owned(),
            Struct {
                fields: fields.into(),
            },
        )]
        .into(),
        ..Default::default()
    };
    let socket = SocketAddress {
        address: "10.0.0.2".into(),
        port_specifier: Some(PortSpecifier::PortValue(7001)),
        ..Default::default()
    };
    LbEndpoint {
        health_status: HealthStatus::Healthy.into(),
        metadata: Some(metadata),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(socket)),
            }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn load_assignment(name: &str, endpoints: Vec<LbEndpoint>) -> ClusterLoadAssignment {
    let group = LocalityLbEndpoints {
        locality: Some(Locality {
            region: "eu".into(),
            zone: "eu-1".into(),
            ..Default::default()
        }),
        lb_endpoints: endpoints,
        ..Default::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![group],
        ..Default::default()
    }
}

fn assignment(name: &str, endpoints: &[(&str, &str, &str)]) -> Resource {
    let endpoints = endpoints
        .iter()
        .map(|(node, id, inbound)| lb_endpoint(node, id, inbound))
        .collect();
    resource(ASSIGNMENT, name, "e1", &load_assignment(name, endpoints))
}

fn index(name: &str, proto: &str, sha256: &str) -> Resource {
    let index = ServiceIndex {
        service: name.into(),
        protos: vec![ProtoService {
            name: proto.into(),
            idempotent_methods: vec!["Get".into()],
        }],
        schema_sha256: sha256.into(),
        ..Default::default()
    };
    resource(INDEX, name, "i1", &index)
}

struct Started {
    handle: XdsHandle,
    schemas: Schemas,
    revision: Arc<AtomicU64>,
}

impl Started {
    /// Its callers use these.
    fn calls(&self, services: &[&str]) {
        for &service in services {
            self.handle.uses.tell(service.into());
        }
    }
}

/// Nobody calls anything.
pub(super) struct Nobody;

impl Callers for Nobody {
    fn used(&self) -> HashMap<Arc<str>, Use> {
        HashMap::new()
    }
    fn forget(&self, _: &Arc<[Arc<str>]>) {}
    fn loads(&self) -> Vec<Arc<LocalityLoad>> {
        Vec::new()
    }
}

fn start(urls: Vec<String>, resources: Resources) -> Started {
    start_with(urls, resources, Prefetch::None, HOUR, Arc::new(Nobody))
}

const HOUR: Duration = Duration::from_secs(3600);

fn start_with(
    urls: Vec<String>,
    resources: Resources,
    prefetch: Prefetch,
    idle: Duration,
    callers: Arc<dyn Callers>,
) -> Started {
    let (schemas, wanted) = Schemas::new();
    let revision = Arc::new(AtomicU64::new(0));
    let asker = Asker {
        node: "a".into(),
        region: String::new(),
        zone: String::new(),
    };
    let (client, handle) = XdsClient::new(
        asker,
        urls,
        resources,
        Demand::new(prefetch, idle, Instant::now()),
        Arc::clone(&revision),
        wanted,
        callers,
    );
    tokio::spawn(client.run());
    Started {
        handle,
        schemas,
        revision,
    }
}

async fn until(handle: &XdsHandle, what: &str, f: impl Fn(&View) -> bool) -> Arc<View> {
    let mut view = handle.view.clone();
    soon(what, view.wait_for(|v| f(v))).await.unwrap();
    let view = handle.view.borrow();
    Arc::clone(&view)
}

/// The endpoints of a service as the view has them; `None` while they are not held.
fn endpoints<'v>(view: &'v View, service: &str) -> Option<&'v [Remote]> {
    let cluster = view.clusters.get(service)?;
    Some(&cluster.assignment.as_ref()?.endpoints)
}

/// A stream to a control plane that has named these services, of which some have been called and told.
async fn running(
    visits: &mut mpsc::Receiver<Visit>,
    started: &Started,
    services: &[&str],
    called: &[(&str, &str)],
) -> Visit {
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    visit.name(services).await;
    until(&started.handle, "all services", |v| v.complete).await;
    for (service, inbound) in called {
        started.calls(&[service]);
        visit.asked_for(&[service], &[]).await;
        visit.fill(&[(service, inbound)]).await;
        until(&started.handle, "its endpoints", |v| {
            endpoints(v, service).is_some()
        })
        .await;
    }
    visit
}

#[tokio::test]
async fn endpoints_come_at_the_first_use_and_change_and_go() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    assert!(!started.handle.view.borrow().complete);
    // In two parts: half a mesh is no mesh.
    let part = vec![index("echo.default", "p.P", "")];
    visit.send_part(INDEX, part, &[], "+").await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "a part", |v| !v.clusters.is_empty()).await;
    assert!(!started.handle.view.borrow().complete);
    visit.name(&["users.shop"]).await;
    let view = until(&started.handle, "all services", |v| v.complete).await;
    assert_eq!(
        endpoints(&view, "echo.default"),
        None,
        "nobody has called it"
    );
    assert_eq!(view.clusters.len(), 2);
    assert_eq!(started.revision.load(Ordering::Relaxed), 102);

    started.calls(&["echo.default", "nobody.knows"]);
    visit.asked_for(&["echo.default"], &[]).await;
    visit.fill(&[("echo.default", "10.0.0.2:15008")]).await;
    let view = until(&started.handle, "its endpoints", |v| {
        endpoints(v, "echo.default").is_some()
    })
    .await;
    assert_eq!(endpoints(&view, "users.shop"), None);
    let remote = &endpoints(&view, "echo.default").unwrap()[0];
    assert_eq!(
        (&*remote.node, &*remote.id, &*remote.version),
        ("b", "i1", "v2")
    );
    assert_eq!(remote.inbound, "10.0.0.2:15008".parse().unwrap());
    assert_eq!(
        (&*remote.region, &*remote.zone, remote.weight),
        ("eu", "eu-1", 1)
    );
    assert_eq!(remote.health, Health::Healthy);
    let index = view.clusters["echo.default"].index.as_ref().unwrap();
    assert_eq!(index.protos[0].idempotent_methods, ["Get"]);
    let status = started.handle.status.borrow().clone();
    assert_eq!((status.wanted, status.held), (1, 1));
    assert_eq!(
        status.fetches,
        Fetches {
            ok: 1,
            timed_out: 0
        }
    );

    // What was not asked for is passed over, and no fault.
    visit
        .send(ASSIGNMENT, vec![assignment("users.shop", &[])], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    assert_eq!(endpoints(&started.handle.view.borrow(), "users.shop"), None);
    // Its last instance has gone long ago: first the name goes, then the rest.
    visit.send(INDEX, vec![], &["echo.default"]).await;
    assert_eq!(visit.answered().await, None);
    visit.send(CLUSTER, vec![], &["echo.default"]).await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "gone", |v| {
        !v.clusters.contains_key("echo.default")
    })
    .await;
    // It comes back, with no need of a first call.
    visit.name(&["echo.default"]).await;
    visit.fill(&[("echo.default", "10.0.0.3:15008")]).await;
    let view = until(&started.handle, "it is back", |v| {
        endpoints(v, "echo.default").is_some_and(|e| !e.is_empty())
    })
    .await;
    assert_eq!(view.clusters.len(), 2);
}

#[tokio::test]
async fn a_service_without_a_cluster_or_endpoints_is_known_to_have_none() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let all = ["gone.default", "empty.default"];
    let mut visit = running(&mut visits, &started, &all, &[]).await;
    started.calls(&["gone.default"]);
    visit.asked_for(&["gone.default"], &[]).await;
    visit.send(CLUSTER, vec![], &["gone.default"]).await;
    assert_eq!(visit.answered().await, None);
    let none = |name: &'static str| move |v: &View| endpoints(v, name) == Some(&[]);
    until(&started.handle, "no cluster", none("gone.default")).await;
    started.calls(&["empty.default"]);
    visit.asked_for(&["empty.default"], &[]).await;
    visit
        .send(CLUSTER, vec![cluster("empty.default")], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    visit.send(ASSIGNMENT, vec![], &["empty.default"]).await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "no endpoints", none("empty.default")).await;
}

#[tokio::test]
async fn all_is_asked_for_from_the_start_if_told_so() {
    let (addr, mut visits) = ads().await;
    let urls = vec![format!("http://{addr}")];
    let started = start_with(
        urls,
        Resources::default(),
        Prefetch::All,
        HOUR,
        Arc::new(Nobody),
    );
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    visit.name(&["a.x", "b.x"]).await;
    visit.asked_for(&["a.x", "b.x"], &[]).await;
    assert!(
        !started.handle.view.borrow().complete,
        "their endpoints belong to it"
    );
    visit
        .fill(&[("a.x", "10.0.0.2:1"), ("b.x", "10.0.0.2:1")])
        .await;
    until(&started.handle, "all of it", |v| v.complete).await;
    visit
        .send(INDEX, vec![index("c.x", "p.P", "")], &["a.x"])
        .await;
    assert_eq!(visit.answered().await, None);
    visit.asked_for(&["c.x"], &["a.x"]).await;
    let view = until(&started.handle, "another one", |v| {
        v.clusters.contains_key("c.x")
    })
    .await;
    assert_eq!(view.clusters.keys().collect::<Vec<_>>(), ["b.x", "c.x"]);
}

#[tokio::test]
async fn what_nobody_uses_is_left_and_dropped_and_what_is_told_later_of_it_passed_over() {
    /// Calls `a.x` all the time.
    #[derive(Default)]
    struct CallsA {
        calls: AtomicU64,
        forgotten: std::sync::Mutex<Vec<Arc<str>>>,
    }
    impl Callers for CallsA {
        fn used(&self) -> HashMap<Arc<str>, Use> {
            let ended = self.calls.fetch_add(1, Ordering::Relaxed);
            let of_a = Use {
                ended,
                in_progress: 0,
            };
            [(Arc::from("a.x"), of_a)].into()
        }
        fn forget(&self, services: &Arc<[Arc<str>]>) {
            self.forgotten
                .lock()
                .unwrap()
                .extend(services.iter().cloned());
        }
        fn loads(&self) -> Vec<Arc<LocalityLoad>> {
            Vec::new()
        }
    }
    let (addr, mut visits) = ads().await;
    let (urls, idle) = (vec![format!("http://{addr}")], Duration::from_millis(500));
    let callers = Arc::new(CallsA::default());
    let started = start_with(
        urls,
        Resources::default(),
        Prefetch::None,
        idle,
        callers.clone(),
    );
    let called = [("a.x", "10.0.0.2:1"), ("b.x", "10.0.0.2:1")];
    let mut visit = running(&mut visits, &started, &["a.x", "b.x"], &called).await;
    visit.asked_for(&[], &["b.x"]).await;
    let view = until(&started.handle, "dropped", |v| {
        endpoints(v, "b.x").is_none()
    })
    .await;
    assert!(endpoints(&view, "a.x").is_some());
    assert_eq!(*callers.forgotten.lock().unwrap(), ["b.x".into()]);
    // On its way when we left.
    visit
        .send(ASSIGNMENT, vec![assignment("b.x", &[])], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    assert_eq!(endpoints(&started.handle.view.borrow(), "b.x"), None);
    // The next use fetches it again.
    started.calls(&["b.x"]);
    visit.asked_for(&["b.x"], &[]).await;
}

/// Passes bytes on to `target` until told to hold them: then both sides hear nothing, and no reset.
async fn silent_on_demand(target: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let silent = tokio::sync::watch::Sender::new(false);
    let seen = silent.subscribe();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut seen = seen.clone();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                let silence = async { drop(seen.wait_for(|silent| *silent).await) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = silence => {}
                }
                // Both sockets stay open.
                std::future::pending::<()>().await;
                drop((near, far));
            });
        }
    });
    (addr, silent)
}

#[tokio::test]
async fn a_replica_that_is_cut_off_without_a_word_is_left_within_seconds() {
    let (first, mut first_visits) = ads().await;
    let (second, mut second_visits) = ads().await;
    let (first, first_silent) = silent_on_demand(first).await;
    let (second, second_silent) = silent_on_demand(second).await;
    let urls = [first, second].map(|addr| format!("http://{addr}"));
    let started = start(urls.into(), Resources::default());
    // Chance says which comes first.
    let (mut visit, silent, others) = tokio::select! {
        visit = first_visits.recv() => (visit.unwrap(), first_silent, &mut second_visits),
        visit = second_visits.recv() => (visit.unwrap(), second_silent, &mut first_visits),
    };
    visit.opening(&[]).await;
    visit.name(&["echo.default"]).await;
    until(&started.handle, "all services", |v| v.complete).await;
    silent.send_replace(true);
    let cut = Instant::now();
    let mut visit = soon("the other replica", others.recv()).await.unwrap();
    // Two seconds of silence, three for the ping, and what connecting takes.
    assert!(
        cut.elapsed() < Duration::from_secs(8),
        "{:?}",
        cut.elapsed()
    );
    visit.opening(&[]).await;
}

#[tokio::test]
async fn a_bad_resource_is_rejected_with_its_reason_and_stops_nobody_else() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let called = [
        ("echo.default", "10.0.0.2:15008"),
        ("users.shop", "10.0.0.3:15008"),
    ];
    let all = ["echo.default", "users.shop"];
    let mut visit = running(&mut visits, &started, &all, &called).await;
    let bad = assignment("echo.default", &[("b", "i1", "nowhere")]);
    let good = assignment(
        "users.shop",
        &[("b", "i1", "10.0.0.3:15008"), ("c", "i2", "10.0.0.4:15008")],
    );
    visit.send(ASSIGNMENT, vec![bad, good], &[]).await;
    let reason = visit.answered().await.expect("a NACK");
    assert!(
        reason.starts_with("echo.default: endpoints[0].lb_endpoints[0].metadata.heddle.inbound"),
        "{reason}"
    );
    let view = until(&started.handle, "the good one", |v| {
        endpoints(v, "users.shop").is_some_and(|e| e.len() == 2)
    })
    .await;
    let last_good = &endpoints(&view, "echo.default").unwrap()[0];
    assert_eq!(last_good.inbound, "10.0.0.2:15008".parse().unwrap());
    let status = started.handle.status.borrow().clone();
    assert_eq!(status.rejected, 1);
    assert!(status.rejections[ASSIGNMENT].contains("nowhere"));
}

#[tokio::test]
async fn while_the_control_plane_is_away_all_stays_and_on_return_only_differences_are_asked_for() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let called = [("echo.default", "10.0.0.2:15008")];
    let all = ["echo.default", "users.shop"];
    let visit = running(&mut visits, &started, &all, &called).await;
    drop(visit);
    let mut away = started.handle.status.clone();
    soon("the end", away.wait_for(|s| s.connected.is_none()))
        .await
        .unwrap();
    // Called meanwhile: asked for on return.
    started.calls(&["users.shop"]);
    assert!(
        endpoints(&started.handle.view.borrow(), "echo.default").is_some(),
        "served meanwhile"
    );
    let mut visit = soon("a second stream", visits.recv()).await.unwrap();
    let asked = visit.opening(&["echo.default", "users.shop"]).await;
    let held = |kind: &str| asked[kind].initial_resource_versions.clone();
    let echo = |version: &str| HashMap::from([("echo.default".into(), version.into())]);
    assert_eq!((held(CLUSTER), held(ASSIGNMENT)), (echo("c1"), echo("e1")));
    assert_eq!(held(INDEX).len(), 2);
    // It went while we were away.
    visit.send(INDEX, vec![], &["echo.default"]).await;
    visit.send(CLUSTER, vec![], &["echo.default"]).await;
    until(&started.handle, "gone", |v| {
        !v.clusters.contains_key("echo.default")
    })
    .await;
}

#[tokio::test]
async fn the_last_good_state_survives_a_restart_and_what_it_has_is_in_use() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let called = [("echo.default", "10.0.0.2:15008")];
    let all = ["echo.default", "users.shop"];
    running(&mut visits, &started, &all, &called).await;
    let snapshot = started.handle.snapshot.borrow().clone();
    last_good::write(&dir, "a", snapshot).await.unwrap();

    let (resources, revision) = last_good::load(&dir, "a").unwrap();
    assert_eq!(revision, 103);
    let nobody = "http://127.0.0.1:1".to_owned();
    let restarted = start(vec![nobody], resources);
    let view = restarted.handle.view.borrow().clone();
    assert!(view.complete, "no answer of the control plane is needed");
    assert_eq!(endpoints(&view, "echo.default").unwrap().len(), 1);
    assert!(view.clusters.contains_key("users.shop"), "known by name");
    let mut status = restarted.handle.status.clone();
    soon(
        "it says so",
        status.wait_for(|s| s.error.contains("refused")),
    )
    .await
    .unwrap();

    let (resources, _) = last_good::load(&dir, "a").unwrap();
    let (addr, mut visits) = ads().await;
    let _restarted = start(vec![format!("http://{addr}")], resources);
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&["echo.default"]).await;

    // Another node's state is not this one's.
    assert!(last_good::load(&dir, "b").is_none());
    assert!(last_good::load(&dir, "a").is_none(), "set aside");
}

#[tokio::test]
async fn descriptors_come_on_demand_and_are_checked_by_their_hash() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    let set = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let hash = sha256_hex(&set);
    for (content, expect) in [
        (Bytes::from_static(b"\x0a\x00"), None),
        (set.clone(), Some(set.clone())),
    ] {
        let schemas = started.schemas.clone();
        let wanted = hash.clone();
        let asked = tokio::spawn(async move { schemas.get(&wanted).await });
        let request = visit.next().await;
        assert_eq!(
            (request.type_url.as_str(), request.resource_names_subscribe),
            (SCHEMA, vec![hash.clone()])
        );
        let schema = Schema {
            file_descriptor_set: content,
        };
        visit
            .send(SCHEMA, vec![resource(SCHEMA, &hash, "s1", &schema)], &[])
            .await;
        assert_eq!(visit.answered().await.is_some(), expect.is_none());
        assert_eq!(
            visit.next().await.resource_names_unsubscribe,
            std::slice::from_ref(&hash)
        );
        assert_eq!(soon("an answer", asked).await.unwrap(), expect);
    }
    // Kept: nobody is asked again.
    drop(visit);
    drop(visits);
    assert_eq!(started.schemas.get(&hash).await, Some(set));
}

#[test]
fn faults_name_their_field() {
    let raw = |message: &dyn Fn() -> Vec<u8>| Bytes::from(message());
    let cla =
        |endpoints: Vec<LbEndpoint>| load_assignment("echo.default", endpoints).encode_to_vec();
    let good = || lb_endpoint("b", "i1", "10.0.0.2:15008");
    let without = |key: &str| {
        let mut endpoint = good();
        if let Some(metadata) = &mut endpoint.metadata {
            metadata
                .filter_metadata
                .get_mut("heddle")
                .unwrap()
                .fields
                .remove(key);
        }
        endpoint
    };
    for (endpoints, field) in [
        (
            vec![without("node")],
            "endpoints[0].lb_endpoints[0].metadata.heddle.node",
        ),
        (
            vec![good(), without("inbound")],
            "endpoints[0].lb_endpoints[1].metadata.heddle.inbound",
        ),
        (
            vec![without("instance")],
            "endpoints[0].lb_endpoints[0].metadata.heddle.instance",
        ),
        (vec![good(), good()], "endpoints[0].lb_endpoints[1]"),
        (
            vec![LbEndpoint {
                host_identifier: None,
                ..good()
            }],
            "endpoints[0].lb_endpoints[0].endpoint.address",
        ),
    ] {
        let fault =
            translate::assignment("echo.default", &raw(&|| cla(endpoints.clone()))).unwrap_err();
        assert_eq!(fault.field, field, "{fault}");
    }
    assert_eq!(
        translate::assignment("other.default", &raw(&|| cla(vec![])))
            .unwrap_err()
            .field,
        "cluster_name"
    );
    assert_eq!(
        translate::assignment("echo", &raw(&|| cla(vec![])))
            .unwrap_err()
            .field,
        "name"
    );
    assert_eq!(
        translate::cluster("echo.default", &Bytes::from_static(b"\xff"))
            .unwrap_err()
            .field,
        "resource"
    );
    let other = ClusterProto {
        name: "echo.default".into(),
        ..Default::default()
    }
    .encode_to_vec();
    assert_eq!(
        translate::cluster("echo.default", &other.into())
            .unwrap_err()
            .field,
        "type"
    );
    let index = ServiceIndex {
        service: "echo.default".into(),
        schema_sha256: "zz".into(),
        ..Default::default()
    };
    assert_eq!(
        translate::index("echo.default", &index.encode_to_vec().into())
            .unwrap_err()
            .field,
        "schema_sha256"
    );
}
