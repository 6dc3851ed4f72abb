//! Accepts connections from the listening sockets. If this worker has clearly more connections than another, it passes
//! the socket to the worker with the fewest: gRPC connections live long, and the kernel distributes them without regard
//! to load.

use std::io;
use std::sync::atomic::Ordering;

use mio::Token;

use super::Command;
use super::turn::Worker;
use crate::caller::Role;
use crate::connection::Transport;
use crate::observe::Counter;

/// Sockets accepted from one listener in one turn.
const PER_TURN: usize = 256;

impl Worker {
    pub(super) fn listen_tcp(&mut self, role: Role, socket: std::net::TcpListener) {
        let token = self.listeners.add_tcp(role, socket);
        self.accept_from(token);
    }

    pub(super) fn listen_unix(&mut self, role: Role, socket: std::os::unix::net::UnixListener) {
        let token = self.listeners.add_unix(role, socket);
        self.accept_from(token);
    }

    /// Accepts what waits and then closes the listening sockets: connections in the kernel's queue must not be reset.
    pub(super) fn close_listeners(&mut self) {
        self.accept_all();
        self.listeners.clear();
    }

    /// Accepts what waits on all listeners, including what could not be accepted when the kernel reported it.
    pub(super) fn accept_all(&mut self) {
        for token in self.listeners.tokens() {
            self.accept_from(token);
        }
    }

    pub(super) fn accept_from(&mut self, token: Token) {
        for _ in 0..PER_TURN {
            let Some((role, accepted)) = self.listeners.accept(token) else {
                return;
            };
            match accepted {
                Ok(transport) => self.place(role, transport),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The caller closed its connection before we accepted it; there may be others.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !self.exchange.on_accept_error(role, &error) {
                        return;
                    }
                }
            }
        }
        // More may wait, and the kernel reports an edge only once: check again soon.
        self.wake();
        self.listeners.watch_again(token);
    }

    /// Keeps an accepted socket or passes it to the worker with the fewest connections.
    fn place(&mut self, role: Role, transport: Transport) {
        let loads = self
            .shared
            .handles
            .iter()
            .map(|handle| handle.load.load(Ordering::Relaxed));
        let least = loads
            .enumerate()
            .filter(|(i, _)| *i != self.index)
            .min_by_key(|(_, load)| *load);
        // Not while draining: the other worker may have finished its drain already.
        let stays = self.shared.draining.load(Ordering::SeqCst);
        let mine = self.exchange.accepted();
        let Some((other, load)) = least.filter(|(_, load)| !stays && clearly_more(mine, *load))
        else {
            return self.take(role, transport);
        };
        let command = match transport {
            Transport::Tcp(socket) => Command::AcceptedTcp(role, socket.into()),
            Transport::Unix(socket) => Command::AcceptedUnix(role, socket.into()),
            #[cfg(test)]
            Transport::Scripted(_) => return self.take(role, transport),
        };
        let Some(handle) = self.shared.handles.get(other) else {
            return;
        };
        // For the next accept, which may happen before the other worker's next turn.
        handle.load.store(load + 1, Ordering::Relaxed);
        match handle.try_send(command) {
            Ok(()) => self.exchange.count(Counter::Rebalanced),
            Err(Command::AcceptedTcp(role, socket)) => self.take_tcp(role, socket),
            Err(Command::AcceptedUnix(role, socket)) => self.take_unix(role, socket),
            Err(_) => {}
        }
    }

    pub(super) fn take_tcp(&mut self, role: Role, socket: std::net::TcpStream) {
        self.take(role, Transport::Tcp(mio::net::TcpStream::from_std(socket)));
    }

    pub(super) fn take_unix(&mut self, role: Role, socket: std::os::unix::net::UnixStream) {
        self.take(
            role,
            Transport::Unix(mio::net::UnixStream::from_std(socket)),
        );
    }

    /// Makes a connection of a socket.
    fn take(&mut self, role: Role, transport: Transport) {
        if let Some(key) = self.exchange.accept(role, transport) {
            self.on_accepted_while_draining(key);
        }
    }
}

/// Whether `mine` connections are so many more than `least` that the other worker should get a new one.
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
