//! The fixture of these tests: nodes (workers with a routing table), backends with scripted behaviour, and clients that
//! see frames.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, client, server};
use heddle_proxy::balance::{Endpoint, EndpointSet, Health, Target};
use heddle_proxy::listener::ListenAddr;
use heddle_proxy::observe::MetricsSnapshot;
use heddle_proxy::route::{ProtoService, RouteTable, Service};
use heddle_proxy::worker::{ConnectionInfo, Report, Role, WorkerOptions, Workers};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A timeout that only a hang reaches.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A loopback address of its own: tests run in parallel, and a port that one of them has released could be given to
/// another.
pub(crate) fn own_host() -> IpAddr {
    static HOSTS: AtomicU32 = AtomicU32::new(1);
    let host = HOSTS.fetch_add(1, Ordering::Relaxed);
    IpAddr::from((0x7f01_0000 + host).to_be_bytes())
}

/// An address that refuses connections and is used by no other test.
pub(crate) async fn refusing() -> SocketAddr {
    let listener = TcpListener::bind((own_host(), 0)).await.unwrap();
    listener.local_addr().unwrap()
}

/// `h2` closes a connection with about a hundred unread small messages, which many concurrent calls on a busy machine cause.
/// That limit is not what these tests are about.
const SMALL_FRAMES: usize = 1 << 30;

/// One proxy.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) workers: Workers,
    pub(crate) outbound: SocketAddr,
    pub(crate) inbound: SocketAddr,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) internal: mpsc::Receiver<std::os::unix::net::UnixStream>,
}

pub(crate) fn options(name: &str) -> WorkerOptions {
    WorkerOptions {
        workers: 2,
        node: name.to_owned(),
        incarnation: format!("incarnation-{name}"),
        // Waiting calls wait until the test continues them, however slow the machine is.
        ready_timeout: LONG,
        pending_timeout: LONG,
        ..WorkerOptions::default()
    }
}

impl Node {
    pub(crate) fn start(name: &str) -> Self {
        Self::with(options(name))
    }

    pub(crate) fn with(options: WorkerOptions) -> Self {
        let name = options.node.clone();
        let (report, reports) = mpsc::channel(64);
        let (hand, internal) = mpsc::channel(8);
        let workers = Workers::start(options, report, hand).unwrap();
        let listen = |role| {
            let any_port = ListenAddr::Tcp((own_host(), 0).into());
            match workers.listen(role, &any_port) {
                Ok(ListenAddr::Tcp(address)) => address,
                other => panic!("{other:?}"),
            }
        };
        let (inbound, outbound) = (listen(Role::Inbound), listen(Role::Outbound));
        Self {
            name,
            workers,
            outbound,
            inbound,
            reports,
            internal,
        }
    }

    pub(crate) fn publish(&self, services: Vec<Service>) {
        self.workers.publish(Arc::new(table(&self.name, services)));
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.outbound).await
    }

    /// Waits until the workers of all callers use the latest table: a worker takes it before it lists its connections, and
    /// one that does not list them in time is asked again.
    pub(crate) async fn table_in_use(&self) {
        within(async { while self.callers().await.is_empty() {} }).await;
    }

    /// The connections of all callers in the metrics; none while a worker has not listed its own.
    pub(crate) async fn callers(&self) -> Vec<ConnectionInfo> {
        let all = self.workers.metrics().downstream_connections;
        let mut listed = self.workers.connections();
        listed.retain(|connection| connection.kind != "upstream");
        if listed.len() == all {
            return listed;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        Vec::new()
    }

    /// Waits for a state of the metrics.
    pub(crate) async fn until(
        &self,
        what: &str,
        reached: impl Fn(&MetricsSnapshot) -> bool,
    ) -> MetricsSnapshot {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let metrics = self.workers.metrics();
            if reached(&metrics) {
                return metrics;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "never: {what}; last seen: {metrics:#?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(crate) fn table(node: &str, services: Vec<Service>) -> RouteTable {
    let mut builder = RouteTable::builder(node, &[]);
    for service in services {
        builder.service(service);
    }
    builder.build()
}

/// `echo.default`, which implements `test.Echo` with `Get` idempotent and `Put` not.
pub(crate) fn echo(endpoints: Vec<Endpoint>) -> Service {
    let mut service = Service::new("echo", "default");
    service.protos = vec![ProtoService {
        name: "test.Echo".to_owned(),
        idempotent_methods: vec!["Get".to_owned()],
        ..ProtoService::default()
    }];
    service.endpoints = Arc::new(EndpointSet {
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    });
    service
}

pub(crate) fn endpoint(id: &str, node: &str, target: Target) -> Endpoint {
    static UIDS: AtomicUsize = AtomicUsize::new(1);
    Endpoint {
        uid: UIDS.fetch_add(1, Ordering::Relaxed) as u64,
        id: id.into(),
        node: node.into(),
        version: "v1".into(),
        target,
        weight: 1,
        health: Health::Healthy,
        region: "".into(),
        zone: "".into(),
    }
}

pub(crate) fn local(id: &str, address: SocketAddr) -> Endpoint {
    endpoint(id, "a", Target::Local(address))
}

/// `echo.default` as seen by another node, with an instance on this one.
pub(crate) fn remote(id: &str, node: &Node) -> Service {
    echo(vec![endpoint(id, &node.name, Target::Node(node.inbound))])
}

/// The same as seen by node `b` itself.
pub(crate) fn on_b(id: &str, address: SocketAddr) -> Service {
    echo(vec![endpoint(id, "b", Target::Local(address))])
}

/// The paths to a backend through one proxy and through two. The first node is the caller's; the service is its view.
pub(crate) fn paths(backend: SocketAddr) -> [(&'static str, Vec<Node>, Service); 2] {
    let (near, a, b) = (Node::start("a"), Node::start("a"), Node::start("b"));
    let far = remote("e1", &b);
    b.publish(vec![on_b("e1", backend)]);
    [
        ("one hop", vec![near], echo(vec![local("e1", backend)])),
        ("two hops", vec![a, b], far),
    ]
}

/// What a backend saw of a call.
pub(crate) type Seen = Request<RecvStream>;
type Answer = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A server on the `h2` crate.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Backend {
    pub(crate) async fn start<F>(answer: F) -> Self
    where
        F: Fn(Seen, SendResponse<Bytes>) -> Answer + Send + Sync + 'static,
    {
        Self::with(server::Builder::new(), answer).await
    }

    pub(crate) async fn with<F>(mut builder: server::Builder, answer: F) -> Self
    where
        F: Fn(Seen, SendResponse<Bytes>) -> Answer + Send + Sync + 'static,
    {
        builder.data_frame_budget(SMALL_FRAMES);
        let listener = TcpListener::bind((own_host(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&connections), Arc::clone(&calls));
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                counts.0.fetch_add(1, Ordering::SeqCst);
                let (builder, answer, calls) =
                    (builder.clone(), Arc::clone(&answer), Arc::clone(&counts.1));
                tasks.spawn(async move {
                    let mut answers = tokio::task::JoinSet::new();
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        calls.fetch_add(1, Ordering::SeqCst);
                        answers.spawn(answer(request, respond));
                    }
                });
            }
        });
        Self {
            address,
            task,
            connections,
            calls,
        }
    }

    /// Answers each call with what came, headers first, then message by message, and trailers `grpc-status: 0`.
    pub(crate) async fn echo() -> Self {
        Self::start(|request, respond| Box::pin(echo_answer(request, respond))).await
    }

    /// Closes every socket at once, as SIGKILL does.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }

    /// Waits until this many calls have arrived in all.
    pub(crate) async fn until_calls(&self, goal: usize) {
        within(async {
            while self.calls() < goal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// A server that handles each connection as the test says.
pub(crate) async fn each_connection<F, D>(deal: F) -> SocketAddr
where
    F: Fn(server::Connection<TcpStream, Bytes>) -> D + Send + Sync + 'static,
    D: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((own_host(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let deal = Arc::new(deal);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let deal = Arc::clone(&deal);
            tokio::spawn(async move { deal(server::handshake(socket).await.unwrap()).await });
        }
    });
    address
}

pub(crate) fn ok_headers() -> Response<()> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

pub(crate) fn status(code: u32) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    trailers
}

pub(crate) async fn echo_answer(request: Seen, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let Ok(mut send) = respond.send_response(ok_headers(), false) else {
        return;
    };
    while let Some(Ok(data)) = body.data().await {
        if push(&mut send, data.clone()).await.is_none() {
            return;
        }
        let _ = body.flow_control().release_capacity(data.len());
    }
    let _ = send.send_trailers(status(0));
}

/// Reads the whole request, and answers with a trailers-only response.
pub(crate) async fn one_frame(request: Seen, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.data().await {}
    let mut answer = ok_headers();
    answer.headers_mut().extend(status(0));
    let _ = respond.send_response(answer, true);
}

/// Sends within the peer's window. `None` when the stream is gone.
pub(crate) async fn push(send: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx))
            .await?
            .ok()?;
        send.send_data(data.split_to(room.min(data.len())), false)
            .ok()?;
    }
    Some(())
}

/// A caller on the `h2` crate.
#[derive(Clone)]
pub(crate) struct Client {
    send: client::SendRequest<Bytes>,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) headers: HeaderMap,
    pub(crate) http_status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    /// `grpc-status`, wherever it stands.
    pub(crate) fn status(&self) -> &str {
        self.get("grpc-status")
    }

    pub(crate) fn reason(&self) -> &str {
        self.get("heddle-reason")
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        let trailer = self
            .trailers
            .as_ref()
            .and_then(|trailers| trailers.get(name));
        trailer
            .or_else(|| self.headers.get(name))
            .map_or("", |value| value.to_str().unwrap())
    }

    /// `grpc-message` without its percent encoding (only spaces are needed here, and they stay).
    pub(crate) fn message(&self) -> &str {
        self.get("grpc-message")
    }
}

pub(crate) fn request(method: &str) -> http::request::Builder {
    Request::builder()
        .method("POST")
        .uri(format!("http://127.0.0.1/test.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket).await
    }

    pub(crate) async fn over(
        socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 22);
        Self::build(&builder, socket).await
    }

    pub(crate) async fn build(
        builder: &client::Builder,
        socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let mut builder = builder.clone();
        builder.data_frame_budget(SMALL_FRAMES);
        let (send, connection) = builder.handshake(socket).await.unwrap();
        tokio::spawn(connection);
        Self { send }
    }

    /// Opens a stream and returns it.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> (client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.unwrap();
        send.send_request(request, end).unwrap()
    }

    /// A whole call. Errors are those of the stream.
    pub(crate) async fn call(&self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let (response, mut send) = self.open(request, false).await;
        let body = Bytes::copy_from_slice(body);
        let upload = async move {
            if push(&mut send, body).await.is_some() {
                let _ = send.send_data(Bytes::new(), true);
            }
        };
        let (reply, ()) = tokio::join!(within(read_reply(response)), upload);
        reply
    }

    pub(crate) async fn get(&self, body: &[u8]) -> Reply {
        self.call(request("Get").body(()).unwrap(), body)
            .await
            .unwrap()
    }

    pub(crate) async fn put(&self, body: &[u8]) -> Reply {
        self.call(request("Put").body(()).unwrap(), body)
            .await
            .unwrap()
    }
}

pub(crate) async fn read_reply(response: client::ResponseFuture) -> Result<Reply, h2::Error> {
    let (head, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?;
    Ok(Reply {
        headers: head.headers,
        http_status: head.status.as_u16(),
        body,
        trailers,
    })
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("no hang")
}
