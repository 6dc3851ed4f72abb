//! Takes connections from listening sockets, keeps their number bounded, and passes a socket on to the worker with
//! the least load where this one has clearly more: gRPC connections live long, and the kernel spreads them blindly.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;

use mio::{Interest, Token};

use crate::caller::{Caller, Role};
use crate::connection::AcceptOptions;
use crate::connection::Transport;
use crate::observe::Counter;
use crate::worker::{Command, Worker};

/// Tokens from here on are listeners (the last of all is the waker).
pub(crate) const LISTENERS: usize = usize::MAX - 0xffff;
/// Sockets taken from one listener in one turn.
const PER_TURN: usize = 256;

/// One listening socket of one worker.
#[derive(Debug)]
pub(crate) struct Listener {
    role: Role,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

impl Worker {
    pub(crate) fn listen_tcp(&mut self, role: Role, socket: TcpListener) {
        self.listen(role, Socket::Tcp(mio::net::TcpListener::from_std(socket)));
    }

    pub(crate) fn listen_unix(&mut self, role: Role, socket: UnixListener) {
        self.listen(role, Socket::Unix(mio::net::UnixListener::from_std(socket)));
    }

    fn listen(&mut self, role: Role, mut socket: Socket) {
        let token = Token(LISTENERS + self.listeners.len());
        let registry = self.poll.registry();
        let registered = match &mut socket {
            Socket::Tcp(socket) => registry.register(socket, token, Interest::READABLE),
            Socket::Unix(socket) => registry.register(socket, token, Interest::READABLE),
        };
        if let Err(error) = registered {
            tracing::error!(%error, "a listener cannot be watched; it accepts nothing");
        }
        self.listeners.push(Listener { role, socket });
        self.accept_from(token);
    }

    /// Takes what waits and then closes the sockets: a connection in the kernel's queue is not to be reset.
    pub(crate) fn close_listeners(&mut self) {
        self.accept_all();
        self.listeners.clear();
    }

    /// Takes what waits everywhere: also what could not be taken when the kernel told of it.
    pub(crate) fn accept_all(&mut self) {
        for index in 0..self.listeners.len() {
            self.accept_from(Token(LISTENERS + index));
        }
    }

    /// Makes the kernel tell again of every listener.
    pub(crate) fn relisten_all(&mut self) {
        for index in 0..self.listeners.len() {
            self.relisten(Token(LISTENERS + index));
        }
    }

    pub(crate) fn accept_from(&mut self, token: Token) {
        for _ in 0..PER_TURN {
            let Some(listener) = self.listeners.get(token.0 - LISTENERS) else {
                return;
            };
            let role = listener.role;
            let accepted = match &listener.socket {
                Socket::Tcp(socket) => socket.accept().map(|(socket, _)| Transport::Tcp(socket)),
                Socket::Unix(socket) => socket.accept().map(|(socket, _)| Transport::Unix(socket)),
            };
            match accepted {
                Ok(transport) => self.place(role, transport),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The caller was gone before we came: the next one may be there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if self.conns.may_log_full(role, self.now) {
                        tracing::warn!(%error, listener = role.name(), "accepting failed; closing an idle connection");
                    }
                    let other = match role {
                        Role::Outbound => Role::Inbound,
                        Role::Inbound => Role::Outbound,
                    };
                    if !self.close_idlest(role) && !self.close_idlest(other) {
                        return;
                    }
                }
            }
        }
        // More may wait, and an edge is told only once: look again soon.
        if let Some(peer) = self.shared.peers.get(self.index) {
            let _ = peer.waker.wake();
        }
        self.relisten(token);
    }

    /// Makes the kernel tell again of a listener that still has connections waiting.
    fn relisten(&mut self, token: Token) {
        let registry = self.poll.registry();
        let Some(listener) = self.listeners.get_mut(token.0 - LISTENERS) else {
            return;
        };
        let _ = match &mut listener.socket {
            Socket::Tcp(socket) => registry.reregister(socket, token, Interest::READABLE),
            Socket::Unix(socket) => registry.reregister(socket, token, Interest::READABLE),
        };
    }

    /// Keeps an accepted socket or passes it to the least loaded worker.
    fn place(&mut self, role: Role, transport: Transport) {
        let loads = self
            .shared
            .peers
            .iter()
            .map(|peer| peer.load.load(Ordering::Relaxed));
        let least = loads
            .enumerate()
            .filter(|(i, _)| *i != self.index)
            .min_by_key(|(_, load)| *load);
        // While draining, the other one may have none left and count as done.
        let stays = self.shared.draining.load(Ordering::SeqCst);
        let Some((other, load)) =
            least.filter(|(_, load)| !stays && clearly_more(self.conns.accepted(), *load))
        else {
            return self.admit(role, transport);
        };
        let command = match transport {
            Transport::Tcp(socket) => Command::AcceptedTcp(role, socket.into()),
            Transport::Unix(socket) => Command::AcceptedUnix(role, socket.into()),
        };
        let Some(peer) = self.shared.peers.get(other) else {
            return;
        };
        // Seen by the next accept, before the other worker has had its turn.
        peer.load.store(load + 1, Ordering::Relaxed);
        match peer.try_send(command) {
            Ok(()) => self.count(Counter::Rebalanced),
            Err(Command::AcceptedTcp(role, socket)) => self.take_tcp(role, socket),
            Err(Command::AcceptedUnix(role, socket)) => self.take_unix(role, socket),
            Err(_) => {}
        }
    }

    pub(crate) fn take_tcp(&mut self, role: Role, socket: std::net::TcpStream) {
        self.admit(role, Transport::Tcp(mio::net::TcpStream::from_std(socket)));
    }

    pub(crate) fn take_unix(&mut self, role: Role, socket: std::os::unix::net::UnixStream) {
        self.admit(
            role,
            Transport::Unix(mio::net::UnixStream::from_std(socket)),
        );
    }

    /// Makes a connection of a socket.
    fn admit(&mut self, role: Role, transport: Transport) {
        let (bound, counter) = match role {
            Role::Outbound => (
                self.options().outbound_connections,
                Counter::BoundOutboundConnections,
            ),
            Role::Inbound => (
                self.options().inbound_connections,
                Counter::BoundInboundConnections,
            ),
        };
        if self.conns.accepted_by(role) >= bound {
            self.count(counter);
            if self.conns.may_log_full(role, self.now) {
                tracing::warn!(
                    listener = role.name(),
                    connections = bound,
                    "a worker has no place for another connection: idle ones are closed for new ones"
                );
            }
            if !self.close_idlest(role) {
                return;
            }
        }
        transport.set_options();
        let now = self.now;
        let caller = Caller {
            role,
            peer: transport.peer(),
        };
        let options = AcceptOptions {
            caller,
            first_request_by: now + self.options().first_request_timeout,
            keepalive: Some(self.options().keepalive_interval).filter(|_| role == Role::Inbound),
            frugal: !self.growing,
        };
        let key = match self.conns.accept(transport, options, now) {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(%error, peer = %caller.peer, "an accepted connection cannot be watched; it is closed");
                return;
            }
        };
        self.count(match role {
            Role::Outbound => Counter::AcceptedOutbound,
            Role::Inbound => Counter::AcceptedInbound,
        });
        if self.draining.is_some() {
            self.say_goodbye(key);
        }
        // It was passed on before the other worker knew of the drain: its calls are still to be carried.
        if std::mem::take(&mut self.drained) {
            let drained = &self.shared.drained;
            drained.send_modify(|count| *count = count.saturating_sub(1));
        }
        self.mark_dirty(key);
    }

    /// Closes the idlest connection of a listener; false if all of them have a call in flight.
    fn close_idlest(&mut self, role: Role) -> bool {
        let Some(key) = self.conns.idlest(role) else {
            return false;
        };
        if let Some(conn) = self.conns.get_mut(key) {
            conn.close_now(b"idle, and the proxy has too many connections");
        }
        self.lose(key, "idle, and there were too many");
        true
    }
}

/// Whether `mine` connections are so many more than `least` that a new one should go there.
fn clearly_more(mine: usize, least: usize) -> bool {
    mine > least + least / 4
}

#[cfg(test)]
mod tests {
    use super::clearly_more;

    #[test]
    fn a_quarter_more_is_clear() {
        for (mine, least, expect) in [
            (0, 0, false),
            (1, 0, true),
            (1, 1, false),
            (4, 3, true),
            (5, 4, false),
            (100, 90, false),
            (126, 100, true),
        ] {
            assert_eq!(clearly_more(mine, least), expect, "{mine} {least}");
        }
    }
}
