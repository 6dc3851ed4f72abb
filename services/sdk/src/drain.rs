//! Serves, and stops without losing a call: leave the registry, accept calls until the clients know, send GOAWAY,
//! finish the calls, return. Input: a tonic router and bound sockets. The service itself is not known here.

use std::{io, time::Duration};

use heddle_listen::Socket;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{
    Server,
    server::{Router, TcpIncoming},
};

use crate::{departure::LeaveOutcome, listen::Listener, register::Registration};

/// How long calls in flight may take after GOAWAY; the rest is cut off.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// hyperium/h2 issue 939: small DATA frames are charged to a budget that grows with the connection window, and a shared
/// connection that exceeds it is closed. A window of 16 MiB or more avoids this.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// High, because all of a node's calls to this instance share one or two connections.
const CONCURRENT_STREAMS: u32 = 10_000;
/// Twice what the mesh accepts, so that the proxy's limit, with its clear error, applies first.
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// High, because callers that share a connection may cancel many calls, which is not an attack.
const PENDING_RESETS: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("there is no listener: bind at least one address")]
    NoListener,
    #[error("the server stopped: {0}")]
    Stopped(String),
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
}

/// How serving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    pub outcome: LeaveOutcome,
    /// Every call in flight was finished; otherwise the rest was cut after [`FINISH_TIMEOUT`].
    pub complete: bool,
}

/// A server with limits for a service behind a node's proxy: many calls share few connections.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(PENDING_RESETS))
}

/// Serves `router` on every listener until `stop`; then leaves the mesh and drains. An instance that is not registered
/// (`None`) drains at once.
///
/// # Errors
/// There is no listener, or the server ends by itself.
pub async fn serve_until_drained(
    router: Router,
    listeners: Vec<Listener>,
    registration: Option<&Registration>,
    stop: impl Future<Output = ()>,
) -> Result<Finish, ServeError> {
    let goaway = CancellationToken::new();
    let mut servers = JoinSet::new();
    let mut files = Vec::new();
    for listener in listeners {
        let router = router.clone();
        let signal = goaway.clone().cancelled_owned();
        match listener.0 {
            Socket::Tcp(socket, _) => {
                let incoming = TcpIncoming::from(socket).with_nodelay(Some(true));
                servers.spawn(async move {
                    router.serve_with_incoming_shutdown(incoming, signal).await
                });
            }
            Socket::Unix(socket, file) => {
                let incoming = UnixListenerStream::new(socket);
                files.push(file);
                servers.spawn(async move {
                    router.serve_with_incoming_shutdown(incoming, signal).await
                });
            }
        }
    }
    if servers.is_empty() {
        return Err(ServeError::NoListener);
    }

    let stopping = async {
        stop.await;
        match registration {
            Some(registration) => registration.leave().await,
            None => LeaveOutcome::default(),
        }
    };
    let outcome = tokio::select! {
        outcome = stopping => outcome,
        ended = servers.join_next() => return Err(ServeError::Stopped(describe(ended))),
    };
    if !outcome.unacknowledged.is_empty() {
        tracing::warn!(unacknowledged = ?outcome.unacknowledged, "leaving before every client has acknowledged the removal");
    }

    goaway.cancel();
    let deadline = Instant::now() + FINISH_TIMEOUT;
    let complete = timeout_at(deadline, async {
        while servers.join_next().await.is_some() {}
    })
    .await
    .is_ok();
    if !complete {
        tracing::warn!(
            "calls were still in flight {FINISH_TIMEOUT:?} after GOAWAY and are cut off \
            off"
        );
    }
    Ok(Finish { outcome, complete })
}

type Ended = Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>;

fn describe(ended: Option<Ended>) -> String {
    match ended {
        Some(Ok(Err(why))) => why.to_string(),
        Some(Err(why)) => why.to_string(),
        Some(Ok(Ok(()))) | None => "it accepts no more connections".to_owned(),
    }
}
