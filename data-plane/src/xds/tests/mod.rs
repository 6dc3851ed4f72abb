//! The stream with a small ADS server whose every message the test sends.

mod away;
mod on_demand;
mod rejected;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
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
use heddle_proto::{control::v1::ProtoService, xds::v1::ServiceIndex};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    ASSIGNMENT, CLUSTER, Callers, INDEX, View,
    client::{ClientIdentity, XdsClient, XdsHandle},
    demand::{Demand, Prefetch},
    resources::Resources,
    schemas::Schemas,
    translate::Remote,
};
use crate::observe::load::{LocalityLoad, Use};

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
    let done = tokio::time::timeout(Duration::from_secs(60), future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within 60 s"))
}

impl Visit {
    async fn next(&mut self) -> DeltaDiscoveryRequest {
        soon("a request", self.requests.message())
            .await
            .unwrap()
            .unwrap()
    }

    /// The first requests, by type: the names of all services, and clusters and endpoints of those wanted.
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

    /// Expects a subscription to clusters and endpoints of `wanted` and an unsubscription from `left`.
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

    /// Adds a suffix to the revision.
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

    /// The answer to the last response: `Some` reason if it was rejected.
    async fn answered(&mut self) -> Option<String> {
        let request = self.next().await;
        assert_eq!(
            request.response_nonce,
            format!("n{}", self.nonces),
            "{request:?}"
        );
        request.error_detail.map(|e| e.message)
    }

    /// Sends these as all services of the mesh.
    async fn name(&mut self, services: &[&str]) {
        let named = services.iter().map(|name| index(name, "p.P", ""));
        self.send(INDEX, named.collect(), &[]).await;
        assert_eq!(self.answered().await, None);
    }

    /// Sends clusters and endpoints of services with one endpoint each, and expects the acknowledgements.
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
    /// Reports that callers use these services.
    fn calls(&self, services: &[&str]) {
        for &service in services {
            self.handle.uses.report(service.into());
        }
    }
}

/// Nobody calls anything.
pub(super) struct NoCallers;

impl Callers for NoCallers {
    fn used(&self) -> HashMap<Arc<str>, Use> {
        HashMap::new()
    }
    fn forget(&self, _: &Arc<HashSet<Arc<str>>>) {}
    fn loads(&self) -> Vec<Arc<LocalityLoad>> {
        Vec::new()
    }
}

fn start(urls: Vec<String>, resources: Resources) -> Started {
    start_with(urls, resources, Prefetch::None, HOUR, Arc::new(NoCallers))
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
    let asker = ClientIdentity {
        node: "a".into(),
        process_id: "p1".into(),
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

/// The endpoints of a service in the view; `None` while they are unknown.
fn endpoints<'v>(view: &'v View, service: &str) -> Option<&'v [Remote]> {
    let cluster = view.clusters.get(service)?;
    Some(&cluster.assignment.as_ref()?.endpoints)
}

/// A stream to a control plane that has named these services and sent the endpoints of those that were called.
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
