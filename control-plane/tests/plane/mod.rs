//! A control plane in this process, nodes that register with it, and real ADS clients on its port.

use std::{path::Path, sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use heddle_control::{
    budget::{Admission, Budget, MeshSize},
    grpc,
    listen::Socket,
    load::{self, Loads},
    registry::{IdleOptions, Membership, Registry, RegistryOptions, View},
    replica::{self, MeshConfigs, MeshRemovals, Peers},
    session,
    snapshot::{Kind, Publisher},
    status,
    store::{Embedded, EmbeddedOptions, Store},
    xds::{self, Clients, Limits},
};
use heddle_proto::{
    control::v1::{
        Change, ControlMessage, GoneInstance, Hello, InstanceRef, LocalInstance, NodeMessage,
        RemovalQuery, SchemaUpload, control_message, node_message,
        node_session_client::NodeSessionClient,
    },
    registry::v1::Instance,
    status::v1::mesh_status_client::MeshStatusClient,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    service::Routes,
    transport::{Channel, Endpoint},
};

/// Waits for an event, long enough for a busy machine.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("nothing came within 60 s")
}

/// Polls for a condition that no event reports.
pub(crate) async fn until(wanted: impl Fn() -> bool) {
    within(async {
        while !wanted() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// How often clients are asked to report their load.
pub(crate) const REPORTS: Duration = Duration::from_millis(100);

/// A control plane on a free port.
pub(crate) struct Plane {
    pub(crate) address: String,
    pub(crate) publisher: Publisher,
    pub(crate) clients: Clients,
    pub(crate) membership: Membership,
    pub(crate) registry: Registry,
    pub(crate) budget: Budget,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Plane {
    /// With a store at this path; forgets services without instances soon.
    pub(crate) async fn start(store: &Path) -> Self {
        let idle = IdleOptions {
            forget_after: Duration::from_millis(300),
            ..IdleOptions::default()
        };
        Self::with_memory(store, idle).await
    }

    pub(crate) async fn with_memory(store: &Path, idle: IdleOptions) -> Self {
        Self::replica(Self::store(store), "control", idle).await
    }

    pub(crate) async fn bounded(store: &Path, limits: Limits) -> Self {
        let idle = IdleOptions::default();
        Self::build(Self::store(store), "control", idle, limits).await
    }

    pub(crate) fn store(path: &Path) -> Arc<dyn Store> {
        Arc::new(Embedded::open(&EmbeddedOptions::new(path)).unwrap())
    }

    /// Several streams on one connection.
    pub(crate) async fn many(
        &self,
        count: usize,
        node: impl Fn(usize) -> Node,
    ) -> Vec<DeltaStream> {
        let channel = self.channel().await;
        let mut streams = Vec::new();
        for number in 0..count {
            streams.push(DeltaStream::open(channel.clone(), node(number)).await);
        }
        streams
    }

    /// One of several replicas that share a store; with this engine only tests do that.
    pub(crate) async fn replica(store: Arc<dyn Store>, name: &str, idle: IdleOptions) -> Self {
        Self::build(store, name, idle, Limits::default()).await
    }

    /// With this much memory for clients.
    pub(crate) async fn of_memory(store: &Path, bytes: usize) -> Self {
        let (idle, limits) = (IdleOptions::default(), Limits::default());
        Self::budgeted(Self::store(store), "control", idle, limits, bytes).await
    }

    pub(crate) async fn build(
        store: Arc<dyn Store>,
        name: &str,
        idle: IdleOptions,
        limits: Limits,
    ) -> Self {
        Self::budgeted(store, name, idle, limits, 1 << 30).await
    }

    async fn budgeted(
        store: Arc<dyn Store>,
        name: &str,
        idle: IdleOptions,
        limits: Limits,
        client_memory: usize,
    ) -> Self {
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bound = listener.local_addr().unwrap();
        let address = format!("http://{bound}");
        let options = RegistryOptions {
            replica: name.to_owned(),
            advertise: address.clone(),
            // No test here waits for a lease to expire, and none renews one.
            lease_ttl: Duration::from_secs(600),
            idle,
            stop: stop.clone(),
            ..RegistryOptions::default()
        };
        let membership = Registry::open(store, options).await.unwrap();
        let registry = membership.registry().clone();
        let publisher = Publisher::start(registry.clone(), stop.clone());
        let (clients, loads) = (Clients::default(), Loads::default());
        let peers = Peers::follow(registry.clone(), stop.clone());
        let ads = xds::service_within(
            membership.clone(),
            publisher.clone(),
            clients.clone(),
            limits,
            stop.clone(),
        );
        let removals = MeshRemovals::new(
            membership.clone(),
            publisher.clone(),
            clients.clone(),
            peers.clone(),
        );
        let configs = MeshConfigs::new(name, clients.clone(), peers.clone());
        let own = replica::service(
            membership.clone(),
            publisher.clone(),
            clients.clone(),
            loads.clone(),
        );
        let reports = load::service(registry.clone(), loads.clone(), REPORTS, stop.clone());
        let mesh = status::service(membership.clone(), clients.clone(), loads, peers);
        let mut routes = Routes::builder();
        routes
            .add_service(session::service(registry.clone(), Arc::new(removals)))
            .add_service(session::registry_service(registry.clone()))
            .add_service(mesh)
            .add_service(own)
            .add_service(reports)
            .add_service(status::csds(configs))
            .add_service(ads);
        let socket = Socket::Tcp(listener, bound);
        let budget = Budget::new(client_memory);
        let sized = registry.clone();
        let admission = Admission::new(budget.clone(), move || MeshSize {
            instances: sized.read(View::instance_count),
            ..MeshSize::default()
        });
        let server = tokio::spawn(grpc::serve(
            socket,
            routes.routes(),
            admission,
            stop.clone(),
        ));
        Self {
            address,
            publisher,
            clients,
            membership,
            registry,
            budget,
            stop,
            server,
        }
    }

    /// Stops it and unlocks the store's file.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        within(self.server).await.unwrap();
        within(self.membership.left()).await;
        drop((self.publisher, self.clients));
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.address.clone())
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn node(&self, name: &str, instances: Vec<LocalInstance>) -> NodeSession {
        self.try_node(name, instances).await.unwrap()
    }

    pub(crate) async fn try_node(
        &self,
        name: &str,
        instances: Vec<LocalInstance>,
    ) -> Result<NodeSession, Status> {
        let mut client = NodeSessionClient::new(self.channel().await);
        let (out, requests) = mpsc::channel(16);
        let hello = Hello {
            node: name.to_owned(),
            process_id: format!("process of {name}"),
            advertise: "127.0.0.1:15008".to_owned(),
            instances,
            ..Hello::default()
        };
        out.send(NodeMessage {
            message: Some(node_message::Message::Hello(hello)),
        })
        .await
        .unwrap();
        let answers = client.open(ReceiverStream::new(requests)).await?;
        let mut session = NodeSession {
            out,
            answers: answers.into_inner(),
            sequence: 0,
            revision: 0,
        };
        let first = within(session.answers.message()).await?;
        let Some(control_message::Message::Welcome(welcome)) = first.and_then(|it| it.message)
        else {
            panic!("no welcome");
        };
        session.revision = welcome.revision;
        self.has(welcome.revision).await;
        Ok(session)
    }

    /// Waits for this revision; streams that start afterwards get it at once.
    pub(crate) async fn has(&self, revision: u64) {
        let mut snapshots = self.publisher.subscribe();
        within(snapshots.wait_for(|snapshot| snapshot.revision >= revision))
            .await
            .unwrap();
    }

    pub(crate) async fn delta(&self, node: Node) -> DeltaStream {
        DeltaStream::open(self.channel().await, node).await
    }

    pub(crate) async fn sotw(&self, node: Node) -> SotwStream {
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let (out, requests) = mpsc::channel(16);
        let answers = client.stream_aggregated_resources(ReceiverStream::new(requests));
        let answers = answers.await.unwrap().into_inner();
        SotwStream {
            out,
            answers,
            node: Some(node),
        }
    }

    pub(crate) async fn status(&self) -> MeshStatusClient<Channel> {
        MeshStatusClient::new(self.channel().await)
    }
}

pub(crate) fn echo(id: &str, address: &str) -> LocalInstance {
    LocalInstance {
        instance: Some(Instance {
            service: "echo".to_owned(),
            namespace: "default".to_owned(),
            id: id.to_owned(),
            address: address.to_owned(),
            ..Instance::default()
        }),
        health: 1,
        ..LocalInstance::default()
    }
}

/// A client's node with text metadata.
pub(crate) fn client(id: &str, metadata: &[(&str, &str)]) -> Node {
    let fields = metadata.iter().map(|(key, text)| {
        let kind = value::Kind::StringValue((*text).to_owned());
        ((*key).to_owned(), Value { kind: Some(kind) })
    });
    Node {
        id: id.to_owned(),
        user_agent_name: "test".to_owned(),
        metadata: Some(Struct {
            fields: fields.collect(),
        }),
        ..Node::default()
    }
}

pub(crate) fn proxy(id: &str) -> Node {
    client(id, &[("role", "proxy"), ("node", id)])
}

pub(crate) struct NodeSession {
    out: mpsc::Sender<NodeMessage>,
    answers: Streaming<ControlMessage>,
    sequence: u64,
    /// The revision of its Welcome.
    pub(crate) revision: u64,
}

impl NodeSession {
    pub(crate) async fn next(&mut self) -> control_message::Message {
        within(self.answers.message())
            .await
            .unwrap()
            .unwrap()
            .message
            .unwrap()
    }

    /// Changes instances and returns the revision at which the change is durable.
    pub(crate) async fn change(&mut self, upserted: Vec<LocalInstance>, removed: &[&str]) -> u64 {
        self.sequence += 1;
        let gone = |id: &&str| GoneInstance {
            service: "echo".to_owned(),
            namespace: "default".to_owned(),
            id: (*id).to_owned(),
            cause: String::new(),
        };
        let removed = removed.iter().map(gone).collect();
        let change = Change {
            sequence: self.sequence,
            upserted,
            removed,
        };
        self.send(node_message::Message::Change(change)).await;
        match self.next().await {
            control_message::Message::Ack(ack) => ack.revision,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn send(&self, message: node_message::Message) {
        self.out
            .send(NodeMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    pub(crate) async fn ask_removal(&self, id: &str, max_wait: Duration) {
        let query = RemovalQuery {
            id: 1,
            instance: Some(reference(id)),
            max_wait: Some(max_wait.try_into().unwrap()),
        };
        self.send(node_message::Message::RemovalQuery(query)).await;
    }

    pub(crate) async fn upload(&self, sha256: &str, descriptors: &[u8]) {
        let upload = SchemaUpload {
            sha256: sha256.to_owned(),
            file_descriptor_set: descriptors.to_vec().into(),
        };
        self.send(node_message::Message::Schema(upload)).await;
    }
}

fn reference(id: &str) -> InstanceRef {
    InstanceRef {
        service: "echo".to_owned(),
        namespace: "default".to_owned(),
        id: id.to_owned(),
    }
}

pub(crate) struct DeltaStream {
    out: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl DeltaStream {
    async fn open(channel: Channel, node: Node) -> Self {
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let (out, requests) = mpsc::channel(16);
        let answers = client.delta_aggregated_resources(ReceiverStream::new(requests));
        Self {
            out,
            answers: answers.await.unwrap().into_inner(),
            node: Some(node),
        }
    }

    pub(crate) async fn subscribe(&mut self, kind: Kind, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub(crate) async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        request.node = self.node.take();
        self.say(request).await;
    }

    /// Sends a request without adding the node to it.
    pub(crate) async fn say(&self, request: DeltaDiscoveryRequest) {
        self.out.send(request).await.unwrap();
    }

    /// False if the stream has ended.
    pub(crate) async fn try_send(&mut self, mut request: DeltaDiscoveryRequest) -> bool {
        request.node = self.node.take();
        self.out.send(request).await.is_ok()
    }

    pub(crate) async fn try_next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        within(self.answers.message()).await
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.try_next().await.unwrap().expect("the stream goes on")
    }

    pub(crate) async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }
}

pub(crate) struct SotwStream {
    out: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl SotwStream {
    pub(crate) async fn subscribe(
        &mut self,
        kind: Kind,
        names: &[&str],
        version: &str,
        nonce: &str,
    ) {
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: kind.url().to_owned(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            version_info: version.to_owned(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        };
        self.send(request).await;
    }

    pub(crate) async fn send(&self, request: DiscoveryRequest) {
        self.out.send(request).await.unwrap();
    }

    pub(crate) async fn try_next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        within(self.answers.message()).await
    }

    pub(crate) async fn next(&mut self) -> DiscoveryResponse {
        self.try_next().await.unwrap().expect("the stream goes on")
    }
}
