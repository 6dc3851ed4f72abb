//! Serves gRPC on the control side's own listeners: sockets opened here (agent, admin) and connections handed over by
//! the workers (health and reflection on outbound). Calls between services do not pass here.

use std::{
    convert::Infallible, os::unix::net::UnixStream as StdUnixStream, sync::Arc, time::Duration,
};

use heddle_listen::{Accepted, BindError, Bound, Connections, Guard, ListenOption, Socket};
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server::ServerReflectionServer as ReflectionV1,
    v1alpha::server_reflection_server::ServerReflectionServer as ReflectionV1Alpha,
};
use tower::ServiceExt as _;
use tracing::debug;

use super::{ending::Ending, health::ProxyHealth, reflection::Reflection};
use crate::agent::keep_alive::EndsItself;

/// The most connections to the agent; over it the idlest connection is closed.
pub const AGENT_CONNECTIONS: usize = 4096;
/// The most streams of one connection: keep-alives and watches of one service process.
const AGENT_STREAMS: u32 = 1000;
/// The most streams of one worker's connection: health watches and reflection of all its callers.
const INTERNAL_STREAMS: u32 = 10_000;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The access rules and the connection limit of a listener; shared by all its sockets.
#[derive(Clone, Debug)]
pub struct Access {
    pub connections: Connections,
    pub guard: Arc<Guard>,
}

/// Opens the sockets of one value of an option. Call it inside the control runtime.
///
/// # Errors
/// The address and the remedy.
pub fn open(option: &ListenOption) -> Result<Vec<Socket>, BindError> {
    let bound = heddle_listen::bind(option)?;
    bound.into_iter().map(Bound::listen).collect()
}

/// Health, and both versions of reflection.
#[must_use]
pub fn common(health: ProxyHealth, reflection: Reflection) -> Routes {
    Routes::new(HealthServer::new(health))
        .add_service(ReflectionV1::new(reflection.clone()))
        .add_service(ReflectionV1Alpha::new(reflection))
}

/// Serves gRPC on a socket until `stop`.
pub async fn grpc(socket: Socket, access: Access, routes: Routes, stop: CancellationToken) {
    let Access { connections, guard } = access;
    let serve = |accepted| {
        let (routes, guard, stop) = (routes.clone(), Arc::clone(&guard), stop.clone());
        let until = stop.clone();
        let answer =
            move |request| grpc_answer(request, routes.clone(), Arc::clone(&guard), until.clone());
        connection(accepted, answer, AGENT_STREAMS, stop)
    };
    heddle_listen::each(socket, connections, &stop, serve).await;
}

async fn grpc_answer(
    request: Request<Incoming>,
    routes: Routes,
    guard: Arc<Guard>,
    stop: CancellationToken,
) -> Result<Response<Body>, Infallible> {
    match guard.check_grpc(&request) {
        Ok(()) => routed(request, routes, stop).await,
        Err(refusal) => Ok(refusal.response().map(Body::new)),
    }
}

/// Answers one call; its response stream ends with `stop`, unless it ends itself.
pub async fn routed(
    request: Request<Incoming>,
    routes: Routes,
    stop: CancellationToken,
) -> Result<Response<Body>, Infallible> {
    let response = routes.oneshot(request).await?;
    if response.extensions().get::<EndsItself>().is_some() {
        return Ok(response);
    }
    Ok(response.map(|body| Body::new(Ending::new(body, stop))))
}

/// Serves the connections that the workers hand over, until the process ends; their streams end with `stop`. Each worker has one
/// connection, so no bound is needed.
pub async fn internal(
    mut handed: mpsc::Receiver<StdUnixStream>,
    routes: Routes,
    stop: CancellationToken,
) {
    while let Some(stream) = handed.recv().await {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream));
        let Ok(stream) = stream else { continue };
        let (routes, stop) = (routes.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| routed(request, routes.clone(), stop.clone()));
            let builder = builder(INTERNAL_STREAMS);
            let ended = builder.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = ended.await {
                debug!("an internal connection of a worker ended: {error}");
            }
        });
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2, until it ends, is closed to make room for another, or `stop`.
pub async fn connection<F>(
    accepted: Accepted,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
    streams: u32,
    stop: CancellationToken,
) where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let Accepted { io, place, .. } = accepted;
    let service = service_fn(|request| place.call(answer(request)));
    let builder = builder(streams);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    place
        .serve(
            connection,
            auto::Connection::graceful_shutdown,
            stop.cancelled(),
        )
        .await;
}

fn builder(streams: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams);
    builder
}
