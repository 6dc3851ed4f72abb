//! The bytes of one connection. Non-blocking reads and writes go through here and return what they did, so that a
//! transport like TLS, whose short read does not mean that nothing is left and whose handshake comes before the first
//! byte, can be another variant. No protocol may come in here.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{SockRef, TcpKeepalive};

use crate::caller::Peer;

/// The kernel probes a silent peer after so long, so often, and so many times.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A connected (or connecting) socket.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Whether a transport can carry the bytes of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// The socket is being connected. A transport with a handshake of its own stays here until that is done.
    Pending,
    Done,
}

/// What a read did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    Bytes {
        len: usize,
        /// Whether there may be more to read now. If not, an event tells when there is.
        more: bool,
    },
    /// Nothing can be read before the next event.
    Blocked,
    /// The peer has closed its half.
    End,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteOutcome {
    pub(crate) written: usize,
    /// Nothing more can be written before the next event.
    pub(crate) blocked: bool,
}

impl Transport {
    /// Goes on with what comes before the protocol's first byte.
    pub(crate) fn handshake(&mut self) -> io::Result<Handshake> {
        let (error, peer) = match self {
            Self::Tcp(socket) => (socket.take_error()?, socket.peer_addr().map(drop)),
            Self::Unix(socket) => (socket.take_error()?, Ok(())),
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
            };
            return match read {
                Ok(0) => Ok(ReadOutcome::End),
                // A short read of a plain socket leaves nothing: another would mostly be a system call for nothing.
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
            };
            return match written {
                // A short write of a plain socket: its buffer is full.
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

    /// Nothing more will be written; the peer's bytes can still be read.
    pub(crate) fn shutdown_write(&mut self) {
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.source().register(registry, token, interest)
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) {
        let _ = self.source().deregister(registry);
    }

    /// Sends small writes at once, and has the kernel find a peer whose host is gone although nothing is to be written.
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
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
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
