//! The control side's own listeners: sockets bound here (agent, admin) or handed over by the workers (health and
//! reflection on outbound), and the gRPC services put on them. No call between services comes here.

use std::{
    convert::Infallible, os::unix::net::UnixStream as StdUnixStream, sync::Arc, time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};
use tonic::{body::Body, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server::ServerReflectionServer as ReflectionV1,
    v1alpha::server_reflection_server::ServerReflectionServer as ReflectionV1Alpha,
};
use tower::ServiceExt as _;
use tracing::debug;

use super::{health::ProxyHealth, reflection::Reflection};
use crate::listener::{
    ListenAddr, ListenError,
    bind::{bind_tcp, bind_unix},
};

/// Connections of services to the agent at once; over it they wait to be accepted.
const AGENT_CONNECTIONS: usize = 4096;
/// Keep-alives and watches of one service process.
const AGENT_STREAMS: u32 = 1000;
/// Health watches and reflection of all callers of one worker.
const INTERNAL_STREAMS: u32 = 10_000;
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound socket.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Opens a listener and says where it is. Inside the control runtime.
///
/// # Errors
/// Names the address and the remedy.
pub fn bind(addr: &ListenAddr) -> Result<(ListenAddr, Bound), ListenError> {
    let system = |source| ListenError::System {
        address: addr.clone(),
        source,
    };
    match addr {
        ListenAddr::Tcp(tcp) => {
            let (bound, mut sockets) = bind_tcp(*tcp, 1)?;
            let socket = sockets.pop().ok_or_else(|| ListenError::Stopped {
                address: addr.clone(),
            })?;
            Ok((
                ListenAddr::Tcp(bound),
                Bound::Tcp(TcpListener::from_std(socket).map_err(system)?),
            ))
        }
        ListenAddr::Unix(path) => {
            let socket = UnixListener::from_std(bind_unix(path)?).map_err(system)?;
            Ok((addr.clone(), Bound::Unix(socket)))
        }
    }
}

/// Health and reflection, both versions.
#[must_use]
pub fn common(health: ProxyHealth, reflection: Reflection) -> Routes {
    Routes::new(HealthServer::new(health))
        .add_service(ReflectionV1::new(reflection.clone()))
        .add_service(ReflectionV1Alpha::new(reflection))
}

/// Serves gRPC on a bound socket, for ever.
pub async fn grpc(bound: Bound, routes: Routes) {
    accept(bound, AGENT_CONNECTIONS, move |stream| {
        let service = service_fn({
            let routes = routes.clone();
            move |request: Request<Incoming>| routes.clone().oneshot(request)
        });
        connection(stream, service, AGENT_STREAMS)
    })
    .await;
}

/// Serves the connections that the workers hand over, for ever.
pub async fn internal(mut handed: mpsc::Receiver<StdUnixStream>, routes: Routes) {
    while let Some(stream) = handed.recv().await {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream));
        let Ok(stream) = stream else { continue };
        let routes = routes.clone();
        let service = service_fn(move |request: Request<Incoming>| routes.clone().oneshot(request));
        tokio::spawn(connection(
            Accepted::Unix(stream),
            service,
            INTERNAL_STREAMS,
        ));
    }
}

/// An accepted connection.
#[derive(Debug)]
pub enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Accepts at most `room` connections at once, for ever. What cannot be accepted now (no descriptors left) is tried
/// again: the listener never ends.
pub async fn accept<F>(bound: Bound, room: usize, serve: impl Fn(Accepted) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(room));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = match &bound {
            Bound::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // A beat is one small frame: it must not wait for the next.
                let _ = stream.set_nodelay(true);
                Accepted::Tcp(stream)
            }),
            Bound::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Accepted::Unix(stream)),
        };
        match accepted {
            Ok(stream) => {
                let served = serve(stream);
                tokio::spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(error) => {
                debug!("accept: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2, until it ends.
pub async fn connection<S>(stream: Accepted, service: S, streams: u32)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Send
        + 'static,
    S::Future: Send,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams);
    let ended = match stream {
        Accepted::Tcp(stream) => {
            builder
                .serve_connection(TokioIo::new(stream), service)
                .await
        }
        Accepted::Unix(stream) => {
            builder
                .serve_connection(TokioIo::new(stream), service)
                .await
        }
    };
    if let Err(error) = ended {
        debug!("control connection: {error}");
    }
}
