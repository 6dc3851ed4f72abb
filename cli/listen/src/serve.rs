//! Accepts connections from a socket until it is stopped, and gives each a place. Input: a socket. Output: connections.
//! Their protocol is not known here.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connections::{ConnectionPermit, Connections},
    socket::Socket,
};

/// Pause when a connection cannot be accepted, for example without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The least time between two log lines about failures.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A connection's byte stream. TLS will be another variant: this is the one place that knows how bytes are carried.
#[derive(Debug)]
pub enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection and its place.
pub struct Accepted {
    pub io: Io,
    /// `None` for a Unix socket.
    pub peer: Option<SocketAddr>,
    pub place: ConnectionPermit,
}

/// Serves every connection until `stop`, and waits for the last of them. A failed accept (no file descriptors left) is
/// retried: the listener never ends by itself.
pub async fn each<F>(
    socket: Socket,
    connections: Connections,
    stop: &CancellationToken,
    serve: impl Fn(Accepted) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let tracker = TaskTracker::new();
    let accepting = async {
        let mut logged: Option<Instant> = None;
        loop {
            match accept(&socket).await {
                Ok((io, peer)) => {
                    // Refused by closing it, which the client sees at once.
                    let Some(place) = connections.enter() else {
                        continue;
                    };
                    tracker.spawn(serve(Accepted { io, peer, place }));
                }
                Err(error) => {
                    if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                        logged = Some(Instant::now());
                        tracing::warn!(listener = %socket, "cannot accept a connection: {error}");
                    }
                    connections.make_room();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    // Closed first, so that no client waits in the backlog.
    drop(socket);
    tracker.close();
    tracker.wait().await;
}

async fn accept(socket: &Socket) -> io::Result<(Io, Option<SocketAddr>)> {
    match socket {
        Socket::Tcp(listener, _) => {
            let (stream, peer) = listener.accept().await?;
            // A beat is one small frame; it must not wait for more data.
            let _ = stream.set_nodelay(true);
            Ok((Io::Tcp(stream), Some(peer)))
        }
        Socket::Unix(listener, _) => Ok((Io::Unix(listener.accept().await?.0), None)),
    }
}

/// Calls a method of the stream.
macro_rules! on_stream {
    ($io:ident, $method:ident $(, $argument:expr)*) => {
        match $io.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Self::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write, context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write_vectored, context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_shutdown, context)
    }
}
