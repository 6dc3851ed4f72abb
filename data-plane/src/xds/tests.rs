//! The stream against a small ADS server whose every word the test says.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
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
    ASSIGNMENT, CLUSTER, INDEX, SCHEMA, View,
    client::{Asker, XdsClient, XdsHandle},
    last_good,
    resources::Resources,
    schemas::Schemas,
    translate,
};
use crate::{agent::schema::sha256_hex, balance::endpoints::Health, state_dir::StateDir};

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

    /// The three first questions; the names and versions of each type.
    async fn opening(&mut self) -> HashMap<String, DeltaDiscoveryRequest> {
        let first = self.next().await;
        let node = first.node.clone().expect("the node on the first request");
        assert_eq!(
            (node.id.as_str(), node.user_agent_name.as_str()),
            ("a", "heddle-proxy")
        );
        let fields = node.metadata.unwrap().fields;
        assert_eq!(fields["role"].kind, Some(Kind::StringValue("proxy".into())));
        let second = self.next().await;
        assert!(second.node.is_none(), "the node on the first request only");
        assert_eq!(
            (first.type_url.as_str(), second.type_url.as_str()),
            (CLUSTER, INDEX)
        );
        assert_eq!(first.resource_names_subscribe, ["*"]);
        assert_eq!(second.resource_names_subscribe, ["*"]);
        [(CLUSTER.to_owned(), first), (INDEX.to_owned(), second)].into()
    }

    async fn send(&mut self, type_url: &str, resources: Vec<Resource>, removed: &[&str]) {
        self.nonces += 1;
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            system_version_info: (100 + self.nonces).to_string(),
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

    /// Services with one endpoint each, sent and acknowledged in full.
    async fn fill(&mut self, services: &[(&str, &str)]) {
        let clusters = services.iter().map(|(name, _)| cluster(name)).collect();
        self.send(CLUSTER, clusters, &[]).await;
        assert_eq!(self.answered().await, None);
        let asked = self.next().await;
        assert_eq!(asked.type_url, ASSIGNMENT);
        let mut names = asked.resource_names_subscribe.clone();
        names.sort();
        assert_eq!(
            names,
            services.iter().map(|(name, _)| *name).collect::<Vec<_>>()
        );
        let endpoints = services
            .iter()
            .map(|(name, inbound)| assignment(name, &[("b", "i1", inbound)]))
            .collect();
        self.send(ASSIGNMENT, endpoints, &[]).await;
        assert_eq!(self.answered().await, None);
        self.send(
            INDEX,
            services
                .iter()
                .map(|(name, _)| index(name, "p.P", ""))
                .collect(),
            &[],
        )
        .await;
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

fn start(urls: Vec<String>, resources: Resources) -> Started {
    let (schemas, wanted) = Schemas::new();
    let revision = Arc::new(AtomicU64::new(0));
    let asker = Asker {
        node: "a".into(),
        region: String::new(),
        zone: String::new(),
    };
    let (client, handle) = XdsClient::new(asker, urls, resources, Arc::clone(&revision), wanted);
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

#[tokio::test]
async fn a_mesh_comes_changes_and_goes() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening().await;
    assert!(!started.handle.view.borrow().complete);
    visit
        .fill(&[
            ("echo.default", "10.0.0.2:15008"),
            ("users.shop", "10.0.0.3:15008"),
        ])
        .await;
    let view = until(&started.handle, "all of it", |v| v.complete).await;
    let echo = &view.clusters["echo.default"];
    let remote = &echo.assignment.endpoints[0];
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
    assert_eq!(
        echo.index.as_ref().unwrap().protos[0].idempotent_methods,
        ["Get"]
    );
    assert_eq!(started.revision.load(Ordering::Relaxed), 103);

    // A new cluster waits for its endpoints, what is there stays meanwhile; then one goes.
    visit.send(CLUSTER, vec![cluster("new.default")], &[]).await;
    assert_eq!(visit.answered().await, None);
    assert_eq!(visit.next().await.resource_names_subscribe, ["new.default"]);
    let view = started.handle.view.borrow().clone();
    assert_eq!(
        view.clusters.keys().collect::<Vec<_>>(),
        ["echo.default", "users.shop"]
    );
    visit
        .send(ASSIGNMENT, vec![assignment("new.default", &[])], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "the new one", |v| {
        v.complete && v.clusters.contains_key("new.default")
    })
    .await;
    visit.send(CLUSTER, vec![], &["echo.default"]).await;
    assert_eq!(visit.answered().await, None);
    assert_eq!(
        visit.next().await.resource_names_unsubscribe,
        ["echo.default"]
    );
    until(&started.handle, "one gone", |v| {
        !v.clusters.contains_key("echo.default")
    })
    .await;
}

#[tokio::test]
async fn a_bad_resource_is_rejected_with_its_reason_and_stops_nobody_else() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening().await;
    visit
        .fill(&[
            ("echo.default", "10.0.0.2:15008"),
            ("users.shop", "10.0.0.3:15008"),
        ])
        .await;
    until(&started.handle, "all of it", |v| v.complete).await;
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
        v.clusters["users.shop"].assignment.endpoints.len() == 2
    })
    .await;
    let last_good = &view.clusters["echo.default"].assignment.endpoints[0];
    assert_eq!(last_good.inbound, "10.0.0.2:15008".parse().unwrap());
    let status = started.handle.status.borrow().clone();
    assert_eq!(status.rejected, 1);
    assert!(status.rejections[ASSIGNMENT].contains("nowhere"));
}

#[tokio::test]
async fn while_the_control_plane_is_away_all_stays_and_on_return_only_differences_are_asked_for() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening().await;
    visit.fill(&[("echo.default", "10.0.0.2:15008")]).await;
    until(&started.handle, "all of it", |v| v.complete).await;
    drop(visit);
    let mut visit = soon("a second stream", visits.recv()).await.unwrap();
    assert!(
        started
            .handle
            .view
            .borrow()
            .clusters
            .contains_key("echo.default"),
        "served meanwhile"
    );
    let asked = visit.opening().await;
    assert_eq!(
        asked[CLUSTER].initial_resource_versions,
        HashMap::from([("echo.default".into(), "c1".into())])
    );
    assert_eq!(
        asked[INDEX].initial_resource_versions,
        HashMap::from([("echo.default".into(), "i1".into())])
    );
    let endpoints = visit.next().await;
    assert_eq!(endpoints.resource_names_subscribe, ["echo.default"]);
    assert_eq!(
        endpoints.initial_resource_versions,
        HashMap::from([("echo.default".into(), "e1".into())])
    );
    // It went while we were away.
    visit.send(CLUSTER, vec![], &["echo.default"]).await;
    until(&started.handle, "gone", |v| v.clusters.is_empty()).await;
}

#[tokio::test]
async fn the_last_good_state_survives_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening().await;
    visit.fill(&[("echo.default", "10.0.0.2:15008")]).await;
    until(&started.handle, "all of it", |v| v.complete).await;
    let snapshot = started.handle.snapshot.borrow().clone();
    last_good::write(&dir, "a", snapshot).await.unwrap();

    let (resources, revision) = last_good::load(&dir, "a").unwrap();
    assert_eq!(revision, 103);
    let nobody = "http://127.0.0.1:1".to_owned();
    let restarted = start(vec![nobody], resources);
    let view = restarted.handle.view.borrow().clone();
    assert!(view.complete, "no answer of the control plane is needed");
    assert_eq!(view.clusters["echo.default"].assignment.endpoints.len(), 1);
    let mut status = restarted.handle.status.clone();
    soon(
        "it says so",
        status.wait_for(|s| s.error.contains("refused")),
    )
    .await
    .unwrap();

    // Another node's state is not this one's.
    assert!(last_good::load(&dir, "b").is_none());
    assert!(last_good::load(&dir, "a").is_none(), "set aside");
}

#[tokio::test]
async fn descriptors_come_on_demand_and_are_checked_by_their_hash() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening().await;
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
