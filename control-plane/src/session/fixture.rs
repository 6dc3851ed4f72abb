//! A real server on a free loopback port, and a node that talks to it, for tests of sessions and of the registry API.
//! It must not repeat behaviour of the server.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use heddle_proto::control::v1::{
    ControlMessage, Hello, LocalInstance, NodeMessage, Welcome, control_message, node_message,
    node_session_client::NodeSessionClient,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, service::Routes};

use super::{Removals, registry_service, service};
use crate::{
    budget::{Admission, Budget, MeshSize},
    grpc,
    listen::Socket,
    names::InstanceKey,
    registry::{Registry, fixture::within},
    store::Revision,
};

/// Answers every query at once, or not at all if `silent`, and records the queries.
#[derive(Default)]
pub(super) struct RecordedQueries {
    pub(super) questions: Mutex<Vec<(String, Revision, Duration)>>,
    pub(super) silent: AtomicBool,
}

impl Removals for RecordedQueries {
    fn acknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        max_wait: Duration,
    ) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>> {
        self.questions
            .lock()
            .unwrap()
            .push((instance.to_string(), revision, max_wait));
        if self.silent.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        Box::pin(async { vec!["slow-client".to_owned()] })
    }
}

pub(super) async fn serve(registry: &Registry, removals: &Arc<RecordedQueries>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let removals: Arc<dyn Removals> = Arc::<RecordedQueries>::clone(removals);
    let mut routes = Routes::builder();
    routes
        .add_service(service(registry.clone(), removals))
        .add_service(registry_service(registry.clone()));
    let socket = Socket::Tcp(listener, address);
    let admission = Admission::new(Budget::new(1 << 30), MeshSize::default);
    let (routes, stop) = (routes.routes(), registry.options().stop.clone());
    tokio::spawn(grpc::serve(socket, routes, admission, stop));
    address
}

pub(super) fn hello(node: &str, process: &str, instances: Vec<LocalInstance>) -> Hello {
    Hello {
        node: node.into(),
        process_id: process.into(),
        advertise: "127.0.0.1:15008".into(),
        instances,
        version: "0.1.0".into(),
        ..Hello::default()
    }
}

/// A node, played by the test.
pub(super) struct Peer {
    out: mpsc::Sender<NodeMessage>,
    inbound: Streaming<ControlMessage>,
}

impl Peer {
    pub(super) async fn connect(server: SocketAddr) -> Self {
        let mut client = NodeSessionClient::connect(format!("http://{server}"))
            .await
            .unwrap();
        let (out, messages) = mpsc::channel(100);
        let inbound = client
            .open(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        Self { out, inbound }
    }

    pub(super) async fn open(server: SocketAddr, hello: Hello) -> (Self, Welcome) {
        let mut peer = Self::connect(server).await;
        peer.send(node_message::Message::Hello(hello)).await;
        match peer.next().await.unwrap() {
            control_message::Message::Welcome(welcome) => (peer, welcome),
            other => panic!("no Welcome but {other:?}"),
        }
    }

    pub(super) async fn send(&self, message: node_message::Message) {
        self.out
            .send(NodeMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    /// False if the server has ended the stream.
    pub(super) async fn try_send(&self, message: node_message::Message) -> bool {
        let message = Some(message);
        self.out.send(NodeMessage { message }).await.is_ok()
    }

    pub(super) async fn next(&mut self) -> Result<control_message::Message, Status> {
        let message = within(self.inbound.message()).await?;
        Ok(message
            .expect("the stream ended")
            .message
            .expect("an empty message"))
    }

    /// Waits for the status that ends the stream.
    pub(super) async fn end(&mut self) -> Status {
        loop {
            match within(self.inbound.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }
}
