//! The listening sockets of one worker, each with the listener that it belongs to. Sockets come in, accepted ones go out;
//! how many connections there may be is decided above.

use std::io;

use mio::{Interest, Registry, Token};

use crate::caller::Role;
use crate::connection::Transport;

/// Tokens from here on are listening sockets (the last of all is the waker).
pub(crate) const LISTENERS: usize = usize::MAX - 0xffff;

/// All listening sockets of one worker.
#[derive(Debug)]
pub(crate) struct Listeners {
    registry: Registry,
    sockets: Vec<(Role, Socket)>,
}

#[derive(Debug)]
enum Socket {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

impl Listeners {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            sockets: Vec::new(),
        }
    }

    pub(crate) fn add_tcp(&mut self, role: Role, socket: std::net::TcpListener) -> Token {
        self.add(role, Socket::Tcp(mio::net::TcpListener::from_std(socket)))
    }

    pub(crate) fn add_unix(
        &mut self,
        role: Role,
        socket: std::os::unix::net::UnixListener,
    ) -> Token {
        self.add(role, Socket::Unix(mio::net::UnixListener::from_std(socket)))
    }

    fn add(&mut self, role: Role, mut socket: Socket) -> Token {
        let token = Token(LISTENERS + self.sockets.len());
        let registered = match &mut socket {
            Socket::Tcp(socket) => self.registry.register(socket, token, Interest::READABLE),
            Socket::Unix(socket) => self.registry.register(socket, token, Interest::READABLE),
        };
        if let Err(error) = registered {
            tracing::error!(%error, "cannot register a listener with the event loop; it accepts nothing");
        }
        self.sockets.push((role, socket));
        token
    }

    /// The tokens of all sockets.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> + use<> {
        (0..self.sockets.len()).map(|index| Token(LISTENERS + index))
    }

    /// Closes all sockets.
    pub(crate) fn clear(&mut self) {
        self.sockets.clear();
    }

    /// Takes one connection that waits at a socket, which may have been closed.
    pub(crate) fn accept(&self, token: Token) -> Option<(Role, io::Result<Transport>)> {
        let (role, socket) = self.sockets.get(token.0.checked_sub(LISTENERS)?)?;
        let accepted = match socket {
            Socket::Tcp(socket) => socket.accept().map(|(socket, _)| Transport::Tcp(socket)),
            Socket::Unix(socket) => socket.accept().map(|(socket, _)| Transport::Unix(socket)),
        };
        Some((*role, accepted))
    }

    /// Makes the kernel tell again of a socket that still has connections waiting.
    pub(crate) fn watch_again(&mut self, token: Token) {
        let index = token.0.checked_sub(LISTENERS);
        let Some((_, socket)) = index.and_then(|index| self.sockets.get_mut(index)) else {
            return;
        };
        let _ = match socket {
            Socket::Tcp(socket) => self.registry.reregister(socket, token, Interest::READABLE),
            Socket::Unix(socket) => self.registry.reregister(socket, token, Interest::READABLE),
        };
    }
}
