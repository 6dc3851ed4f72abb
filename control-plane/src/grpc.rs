//! The gRPC listener: HTTP/2 connections that lead to the routes. In come sockets and routes, calls go out with where
//! they come from and a handle on their connection: who serves a stream may have its connection end too, so that its
//! client's next one goes through the load balancer again. No service is known here.

use std::time::Duration;

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    codegen::Service as _,
    service::Routes,
    transport::server::{TcpConnectInfo, UdsConnectInfo},
};

use crate::listen::{Door, Socket, Visitor};

/// A peer that is silent for so long is asked, and dropped if it does not answer in as long again: nodes and clients
/// that died without a word would else count as connected.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Windows: a node's descriptors (4 MiB) go through without a wait, and small frames of many streams on one connection
/// stay far from the bounds of the HTTP/2 library.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Calls at a time on one connection.
const STREAMS_PER_CONNECTION: u32 = 1000;
/// Connections at a time; further ones wait in the kernel.
const CONNECTIONS: usize = 20_000;

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
    let tracker = TaskTracker::new();
    let door = Door::new(socket, CONNECTIONS);
    while let Some(visitor) = door.next(&stop).await {
        tracker.spawn(connection(visitor, routes.clone(), stop.clone()));
    }
    // Nobody new is to wait at a door that stays shut.
    drop(door);
    tracker.close();
    tracker.wait().await;
}

async fn connection(visitor: Visitor, routes: Routes, stop: CancellationToken) {
    let (address, end) = (visitor.address, ConnectionEnd::default());
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
        () = stop.cancelled() => {}
        () = end.0.cancelled() => {}
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
