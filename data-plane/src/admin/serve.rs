//! The control side's own listeners: sockets bound here (agent, admin) or handed over by the workers (health and
//! reflection on outbound), and the gRPC services put on them. No call between services comes here.

use std::os::unix::net::UnixStream as StdUnixStream;

use futures_util::StreamExt as _;
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::{service::Routes, transport::Server};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server::ServerReflectionServer as ReflectionV1,
    v1alpha::server_reflection_server::ServerReflectionServer as ReflectionV1Alpha,
};
use tracing::error;

use super::{health::ProxyHealth, reflection::Reflection};
use crate::listener::{
    ListenAddr, ListenError,
    bind::{bind_tcp, bind_unix},
};

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
    let server = Server::builder().tcp_nodelay(true).add_routes(routes);
    let ended = match bound {
        Bound::Tcp(listener) => {
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        }
        Bound::Unix(listener) => {
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        }
    };
    if let Err(error) = ended {
        error!("a control listener ended: {error}");
    }
}

/// Serves the connections that the workers hand over, for ever.
pub async fn internal(handed: mpsc::Receiver<StdUnixStream>, routes: Routes) {
    let incoming = ReceiverStream::new(handed).map(|stream| {
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    });
    if let Err(error) = Server::builder()
        .add_routes(routes)
        .serve_with_incoming(incoming)
        .await
    {
        error!("the workers' health and reflection ended: {error}");
    }
}
