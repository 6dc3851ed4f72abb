//! The gRPC listener: accepts HTTP/2 connections and passes their requests to the routes. Each request is checked by
//! the browser guard, authorized, and passed on with its caller. Services are not known here.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, service::Routes};

use heddle_listen::{Accepted, Connections, Guard, Limits, Socket};

use crate::{
    access::{Authorizer, Caller},
    budget::Admission,
};

/// A peer is pinged after this time of silence, and dropped if it does not answer within the same time: nodes and
/// clients that died would otherwise count as connected.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Flow-control windows: how many bytes a client may send before they are read. Each connection is charged for its own
/// window from the start (`budget::CONNECTION`), because calls do not control what fills it.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Most bytes of an answer that its transport buffers besides the last message.
const SEND_BUFFER: usize = 64 << 10;
/// Most calls at a time on one connection.
const STREAMS_PER_CONNECTION: u32 = 1000;
/// Most connections at a time: two for each of 10,000 proxies (xDS, session), and some spare ones. At the limit the
/// connection that has been idle longest is closed.
pub const CONNECTIONS: usize = 25_000;
/// Time limit for the header of an HTTP/1.1 request, which is only answered with an error.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stop` is cancelled, then until all calls have ended; with the default limits.
pub async fn serve(socket: Socket, routes: Routes, admission: Admission, stop: CancellationToken) {
    let connections = Connections::new("grpc", Limits::of(CONNECTIONS));
    let (guard, authorizer) = (Arc::default(), Authorizer::default());
    serve_within(
        socket,
        routes,
        admission,
        connections,
        guard,
        authorizer,
        stop,
    )
    .await;
}

/// Like `serve`, with the limits of a listener, which may have several sockets, and the names of this host.
pub(crate) async fn serve_within(
    socket: Socket,
    routes: Routes,
    admission: Admission,
    connections: Connections,
    guard: Arc<Guard>,
    authorizer: Authorizer,
    stop: CancellationToken,
) {
    let entry = Entry {
        routes,
        admission,
        guard,
        authorizer,
    };
    serve_entry(socket, entry, connections, stop).await;
}

async fn serve_entry(
    socket: Socket,
    entry: Entry,
    connections: Connections,
    stop: CancellationToken,
) {
    let entry = Arc::new(entry);
    let serve = |accepted| connection(accepted, Arc::clone(&entry), stop.clone());
    heddle_listen::each(socket, connections, &stop, serve).await;
}

/// The checks and the routes of a call.
struct Entry {
    routes: Routes,
    admission: Admission,
    guard: Arc<Guard>,
    authorizer: Authorizer,
}

async fn connection(accepted: Accepted, entry: Arc<Entry>, stop: CancellationToken) {
    let Accepted { io, peer, place } = accepted;
    let (account, _charge) = match entry.admission.connect(peer) {
        Ok(admitted) => admitted,
        Err(refusal) => return tracing::info!(%refusal, "a connection is closed"),
    };
    let caller = Caller::of_connection(peer, account);
    let calls = service_fn(|request: Request<Incoming>| {
        place.call(answer(request, caller.clone(), Arc::clone(&entry)))
    });
    let builder = builder();
    let connection = builder.serve_connection(TokioIo::new(io), calls);
    let ended = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = caller.connection().begun() => {}
        }
    };
    place
        .serve(connection, auto::Connection::graceful_shutdown, ended)
        .await;
}

async fn answer(
    mut request: Request<Incoming>,
    caller: Caller,
    entry: Arc<Entry>,
) -> Result<Response<Body>, Infallible> {
    if let Err(refusal) = entry.guard.check_grpc(&request) {
        return Ok(refusal.response().map(Body::new));
    }
    if let Err(denied) = entry.authorizer.authorize(&caller, request.uri().path()) {
        return Ok(Status::permission_denied(denied.to_string()).into_http());
    }
    let (account, routes) = (caller.account().clone(), entry.routes.clone());
    request.extensions_mut().insert(caller);
    entry.admission.call(account, request, routes).await
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    builder
}

#[cfg(test)]
mod tests {
    use heddle_listen::connections::FIRST_REQUEST;
    use heddle_proto::registry::v1::{ListInstancesRequest, registry_client::RegistryClient};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };
    use tonic::{Code, transport::Endpoint};

    use super::*;
    use crate::budget::{Budget, MeshSize};
    use crate::registry::fixture::within;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    async fn start(places: usize) -> (TcpStream, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let socket = Socket::Tcp(listener, address);
        let connections = Connections::new("grpc", Limits::of(places));
        let serving = serve_within(
            socket,
            Routes::default(),
            Admission::new(Budget::new(1 << 30), MeshSize::default),
            connections,
            Arc::default(),
            Authorizer::default(),
            stop.clone(),
        );
        let server = tokio::spawn(serving);
        (TcpStream::connect(address).await.unwrap(), stop, server)
    }

    /// Issue 10, A4.
    #[tokio::test(start_paused = true)]
    async fn who_asks_for_nothing_in_time_is_left() {
        for input in [&PREFACE[..16], PREFACE, b"", b"GET / HTTP/1.1\r\n"] {
            let (mut client, _stop, _server) = start(8).await;
            client.write_all(input).await.unwrap();
            let mut received = Vec::new();
            let began = tokio::time::Instant::now();
            // The paused clock advances when nothing else can run. The connection may also end with a reset.
            let _ = client.read_to_end(&mut received).await;
            assert_eq!(began.elapsed().as_secs(), FIRST_REQUEST.as_secs());
        }
    }

    /// Issue 10, A4.
    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_a_silent_connection() {
        let (mut silent, _stop, _server) = start(2).await;
        let address = silent.peer_addr().unwrap();
        let mut others = Vec::new();
        for _ in 0..2 {
            let mut other = TcpStream::connect(address).await.unwrap();
            other.write_all(PREFACE).await.unwrap();
            within(other.read_u8()).await.unwrap();
            others.push(other);
        }
        let mut received = Vec::new();
        let _ = within(silent.read_to_end(&mut received)).await;
    }

    #[tokio::test]
    async fn a_silent_connection_does_not_hold_up_the_end() {
        let (client, stop, server) = start(8).await;
        // When the second connection is answered, the first one has been accepted.
        let mut second = TcpStream::connect(client.peer_addr().unwrap())
            .await
            .unwrap();
        second.write_all(PREFACE).await.unwrap();
        within(second.read_u8()).await.unwrap();
        stop.cancel();
        within(server).await.unwrap();
        drop(client);
    }

    /// Issue 10, F8: for every method, and before any service gets the call.
    #[tokio::test]
    async fn every_call_is_authorized_by_its_method() {
        for (authorizer, expect) in [
            (Authorizer::denying(), Code::PermissionDenied),
            (Authorizer::default(), Code::Unimplemented),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let entry = Entry {
                routes: Routes::default(),
                admission: Admission::new(Budget::new(1 << 30), MeshSize::default),
                guard: Arc::default(),
                authorizer,
            };
            let socket = Socket::Tcp(listener, address);
            let connections = Connections::new("grpc", Limits::of(8));
            let serving = serve_entry(socket, entry, connections, stop.clone());
            let server = tokio::spawn(serving);
            let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
            let mut client = RegistryClient::new(channel.connect().await.unwrap());
            let request = ListInstancesRequest::default();
            let refused = within(client.list_instances(request)).await.unwrap_err();
            assert_eq!(refused.code(), expect, "{refused:?}");
            if expect == Code::PermissionDenied {
                let method = "may not call /heddle.registry.v1.Registry/ListInstances";
                assert!(refused.message().contains(method), "{refused:?}");
            }
            drop(client);
            stop.cancel();
            within(server).await.unwrap();
        }
    }

    /// Issue 10, D3.
    #[tokio::test]
    async fn a_page_of_the_web_is_answered_with_why_not() {
        for (head, expect) in [
            ("host: evil.example\r\n", "421"),
            ("host: 127.0.0.1\r\norigin: http://evil.example\r\n", "403"),
            ("host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\n", "403"),
            ("host: 127.0.0.1\r\ncontent-type: text/plain\r\n", "415"),
            (
                "host: 127.0.0.1\r\ncontent-type: application/grpc\r\n",
                "505",
            ),
        ] {
            let (mut client, _stop, _server) = start(8).await;
            let request = format!("POST /x.Y/Z HTTP/1.1\r\n{head}connection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut received = String::new();
            within(client.read_to_string(&mut received)).await.unwrap();
            assert!(
                received.starts_with(&format!("HTTP/1.1 {expect}")),
                "{head}: {received}"
            );
        }
    }
}
