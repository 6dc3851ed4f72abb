//! Accepts connections from a socket until told to stop, and gives each a place. Input: a socket. Output: connections.
//! Their protocol is not known here.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connections::{Connections, Place},
    socket::Socket,
};

/// Pause when a connection cannot be accepted, for example without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The least time between two log lines about failures.
const LOG_EVERY: Duration = Duration::from_secs(10);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection's byte stream. (TLS will be another kind.)
pub struct Io(Box<dyn Stream>);

/// A connection and its place.
pub struct Accepted {
    pub io: Io,
    /// `None` for a Unix socket.
    pub peer: Option<SocketAddr>,
    pub place: Place,
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
                        tracing::warn!(listener = %socket, "a connection cannot be accepted: {error}");
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
            Ok((Io(Box::new(stream)), Some(peer)))
        }
        Socket::Unix(listener, _) => Ok((Io(Box::new(listener.accept().await?.0)), None)),
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
