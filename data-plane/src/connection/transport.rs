//! The bytes of one connection. All non-blocking reads and writes are made here and return what they did, so that
//! another transport can be added as a variant. One like TLS has a handshake before the first byte, accepted or opened;
//! a short read of it does not mean that nothing is left; a read may have to write first; and what it was given to write
//! may not all be in the socket yet. `scripted` has these properties, for tests. Protocols do not belong here.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{SockRef, TcpKeepalive};

#[cfg(test)]
use super::scripted::Scripted;
use crate::caller::Peer;

/// TCP keep-alive: the kernel probes a silent peer after this time, at this interval, this many times.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A connected (or connecting) socket.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    #[cfg(test)]
    Scripted(Scripted),
}

/// Whether a transport can carry the protocol's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// The socket is being connected, or a transport's own handshake is not complete.
    Pending,
    Done,
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    Bytes {
        len: usize,
        /// Whether there may be more to read now. If not, an event reports when there is.
        more: bool,
    },
    /// Nothing can be read before the next event.
    Blocked,
    /// The transport has to write before it can read on, and the socket is full: nothing can be read before it is
    /// writable. Plain sockets never need this.
    #[cfg_attr(not(test), expect(dead_code, reason = "for TLS"))]
    WantsWrite,
    /// The peer has closed its half.
    End,
}

/// Result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteOutcome {
    pub(crate) written: usize,
    /// Nothing more can be written before the next event.
    pub(crate) blocked: bool,
}

impl Transport {
    /// The state of a socket that was just accepted: its connection exists, but the transport may have a handshake of its
    /// own.
    pub(crate) fn accepted_state(&self) -> Handshake {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Handshake::Done,
            #[cfg(test)]
            Self::Scripted(_) => Handshake::Pending,
        }
    }

    /// Continues what precedes the protocol's first byte, until it is done or waits for an event.
    pub(crate) fn handshake(&mut self) -> io::Result<Handshake> {
        let (error, peer) = match self {
            Self::Tcp(socket) => (socket.take_error()?, socket.peer_addr().map(drop)),
            Self::Unix(socket) => (socket.take_error()?, Ok(())),
            #[cfg(test)]
            Self::Scripted(scripted) => return scripted.handshake(),
        };
        match (error, peer) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(Handshake::Done),
            (None, Err(error)) if error.kind() == io::ErrorKind::NotConnected => {
                Ok(Handshake::Pending)
            }
            (None, Err(error)) => Err(error),
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<ReadOutcome> {
        loop {
            let read = match self {
                Self::Tcp(socket) => socket.read(buffer),
                Self::Unix(socket) => socket.read(buffer),
                #[cfg(test)]
                Self::Scripted(scripted) => return scripted.read(buffer),
            };
            return match read {
                Ok(0) => Ok(ReadOutcome::End),
                // A short read has emptied a plain socket; another read would mostly be a wasted system call.
                Ok(len) => Ok(ReadOutcome::Bytes {
                    len,
                    more: len == buffer.len(),
                }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(ReadOutcome::Blocked),
                Err(error) => Err(error),
            };
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<WriteOutcome> {
        loop {
            let written = match self {
                Self::Tcp(socket) => socket.write(bytes),
                Self::Unix(socket) => socket.write(bytes),
                #[cfg(test)]
                Self::Scripted(scripted) => return scripted.write(bytes),
            };
            return match written {
                // A short write means that a plain socket's buffer is full.
                Ok(written) => Ok(WriteOutcome {
                    written,
                    blocked: written < bytes.len(),
                }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(WriteOutcome {
                    written: 0,
                    blocked: true,
                }),
                Err(error) => Err(error),
            };
        }
    }

    /// Whether something that was written is not in the socket yet: to be written on when the socket is writable, with
    /// no further bytes if there are none.
    #[inline]
    pub(crate) fn has_unsent(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.has_unsent(),
        }
    }

    /// Closes our half; the peer's bytes can still be read.
    pub(crate) fn shutdown_write(&mut self) {
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.socket().shutdown(Shutdown::Write),
        };
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.source().register(registry, token, interest)
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) {
        let _ = self.source().deregister(registry);
    }

    /// Sends small writes at once, and lets the kernel detect a peer whose host is gone even if nothing is being
    /// written.
    pub(crate) fn set_options(&self) {
        if let Self::Tcp(socket) = self {
            let _ = socket.set_nodelay(true);
            let probes = TcpKeepalive::new()
                .with_time(KEEPALIVE_AFTER)
                .with_interval(KEEPALIVE_EVERY)
                .with_retries(KEEPALIVE_PROBES);
            let _ = SockRef::from(socket).set_tcp_keepalive(&probes);
        }
    }

    pub(crate) fn peer(&self) -> Peer {
        match self {
            Self::Tcp(socket) => socket.peer_addr().map_or(Peer::Unknown, Peer::Tcp),
            Self::Unix(_) => Peer::Unix,
            #[cfg(test)]
            Self::Scripted(_) => Peer::Unix,
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.socket(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_return_what_they_did() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        let [mut ours, mut theirs] =
            [ours, theirs].map(|socket| Transport::Unix(UnixStream::from_std(socket)));
        let mut buffer = [0; 4];
        assert_eq!(theirs.read(&mut buffer).unwrap(), ReadOutcome::Blocked);
        let outcome = ours.write(b"sixsix").unwrap();
        assert_eq!((outcome.written, outcome.blocked), (6, false));
        for (len, more) in [(4, true), (2, false)] {
            assert_eq!(
                theirs.read(&mut buffer).unwrap(),
                ReadOutcome::Bytes { len, more }
            );
        }
        let block = vec![0; 1 << 20];
        while !ours.write(&block).unwrap().blocked {}
        assert_eq!(
            ours.write(&block).unwrap(),
            WriteOutcome {
                written: 0,
                blocked: true
            }
        );
        drop(ours);
        let mut last = None;
        while last != Some(ReadOutcome::End) {
            last = Some(theirs.read(&mut [0; 1 << 16]).unwrap());
        }
    }
}
