//! The gRPC listener: HTTP/2 connections that lead to the routes. In come sockets and routes, calls go out with where
//! they come from and a handle on their connection: who serves a stream may have its connection end too, so that its
//! client's next one goes through the load balancer again. No service is known here.

use std::time::Duration;

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    codegen::Service as _,
    service::Routes,
    transport::server::{TcpConnectInfo, UdsConnectInfo},
};

use crate::listen::{self, Socket, Visitor};

/// A peer that is silent for so long is asked, and dropped if it does not answer in as long again: nodes and clients
/// that died without a word would else count as connected.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Windows: a node's descriptors (4 MiB) go through without a wait, and small frames of many streams on one connection
/// stay far from the bounds of the HTTP/2 library.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Calls at a time on one connection.
const STREAMS_PER_CONNECTION: u32 = 1000;
/// Connections at a time: two of each proxy of 10,000 (xDS, session), and some. Further ones wait in the kernel.
const CONNECTIONS: usize = 25_000;
/// A client has so long to say that it speaks HTTP/2; from then on it is asked whether it lives.
const PREFACE: Duration = Duration::from_secs(10);
/// "PRI * HTTP/2.0" and two empty lines (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;

/// Has the connection of a call end gracefully (GOAWAY): its calls go on, new ones come on another connection. In the
/// extensions of each request; the default is for calls that come on none.
#[derive(Clone, Debug, Default)]
pub struct ConnectionEnd(CancellationToken);

impl ConnectionEnd {
    pub(crate) fn begin(&self) {
        self.0.cancel();
    }
}

/// Serves until `stop`, then until all calls have ended.
pub async fn serve(socket: Socket, routes: Routes, stop: CancellationToken) {
    let serve = |visitor| connection(visitor, routes.clone(), stop.clone());
    listen::each(socket, CONNECTIONS, &stop, serve).await;
}

async fn connection(visitor: Visitor, routes: Routes, stop: CancellationToken) {
    let (address, end) = (visitor.address, ConnectionEnd::default());
    let read = visitor.io.read();
    let speaks = move || read.bytes() >= PREFACE_BYTES;
    let silent = async {
        tokio::time::sleep(PREFACE).await;
        if speaks() {
            std::future::pending::<()>().await;
        }
    };
    let handle = end.clone();
    let calls = service_fn(move |mut request: Request<Incoming>| {
        let extensions = request.extensions_mut();
        // As tonic's own server says where a call comes from; a Unix socket has no address.
        if address.is_some() {
            extensions.insert(TcpConnectInfo {
                local_addr: None,
                remote_addr: address,
            });
        } else {
            extensions.insert(UdsConnectInfo {
                peer_addr: None,
                peer_cred: None,
            });
        }
        extensions.insert(handle.clone());
        routes.clone().call(request.map(Body::new))
    });
    let connection = builder().serve_connection(TokioIo::new(visitor.io), calls);
    tokio::pin!(connection);
    // A client that breaks off is its own affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = silent => return,
        () = stop.cancelled() => {}
        () = end.0.cancelled() => {}
    }
    if !speaks() {
        return;
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    builder
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };

    use super::*;
    use crate::registry::fixture::within;

    async fn start() -> (TcpStream, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let socket = Socket::Tcp(listener, address);
        let server = tokio::spawn(serve(socket, Routes::default(), stop.clone()));
        (TcpStream::connect(address).await.unwrap(), stop, server)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_speak_http2_in_time_is_left() {
        let (mut client, _stop, _server) = start().await;
        client.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        let mut heard = Vec::new();
        let began = tokio::time::Instant::now();
        // The clock runs on as soon as nothing else can happen. A reset is as good an end as any.
        let _ = client.read_to_end(&mut heard).await;
        assert_eq!(began.elapsed().as_secs(), PREFACE.as_secs());
    }

    #[tokio::test]
    async fn a_silent_connection_does_not_hold_up_the_end() {
        let (client, stop, server) = start().await;
        // A second one that is answered: the first is inside by then.
        let mut second = TcpStream::connect(client.peer_addr().unwrap())
            .await
            .unwrap();
        let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        second.write_all(settings).await.unwrap();
        within(second.read_u8()).await.unwrap();
        stop.cancel();
        within(server).await.unwrap();
        drop(client);
    }
}
