//! Turns accepted sockets into connections, up to each listener's limit; beyond it the idlest connection is closed.
//! Takes sockets, gives connections.

use std::io;

use crate::caller::{Caller, Role};
use crate::connection::{AcceptOptions, Transport};
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::observe::Counter;

impl Exchange {
    /// Makes a connection of an accepted socket. `None` if there is no room for it; the socket is then closed.
    pub(crate) fn accept(&mut self, role: Role, transport: Transport) -> Option<ConnKey> {
        let (bound, counter) = match role {
            Role::Outbound => (
                self.options.outbound_connections,
                Counter::BoundOutboundConnections,
            ),
            Role::Inbound => (
                self.options.inbound_connections,
                Counter::BoundInboundConnections,
            ),
        };
        if self.conns.accepted_by(role) >= bound {
            self.count(counter);
            if self.conns.may_log_full(role, self.now) {
                tracing::warn!(
                    listener = role.name(),
                    connections = bound,
                    "a worker has reached its connection limit: idle connections are closed to \
                     make room for new ones"
                );
            }
            if !self.close_idlest(role) {
                return None;
            }
        }
        transport.set_options();
        let now = self.now;
        let caller = Caller::new(role, transport.peer());
        let options = AcceptOptions {
            caller,
            first_request_by: now + self.options.first_request_timeout,
            keepalive: Some(self.options.keepalive_interval).filter(|_| role == Role::Inbound),
            low_memory: self.admission.is_low_memory(),
        };
        let key = match self.conns.accept(transport, options, now) {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(%error, peer = %caller.peer, "cannot register an accepted connection with the event loop; it is closed");
                return None;
            }
        };
        self.count(match role {
            Role::Outbound => Counter::AcceptedOutbound,
            Role::Inbound => Counter::AcceptedInbound,
        });
        self.mark_dirty(key);
        Some(key)
    }

    /// The system could not accept a connection, for example without a free file descriptor: closes an idle one. False
    /// if all have calls in flight.
    pub(crate) fn on_accept_error(&mut self, role: Role, error: &io::Error) -> bool {
        if self.conns.may_log_full(role, self.now) {
            tracing::warn!(%error, listener = role.name(), "accepting failed; closing an idle connection");
        }
        let other = match role {
            Role::Outbound => Role::Inbound,
            Role::Inbound => Role::Outbound,
        };
        self.close_idlest(role) || self.close_idlest(other)
    }

    /// Closes the idlest connection of a listener; false if all of them have calls in flight, and on inbound are links.
    fn close_idlest(&mut self, role: Role) -> bool {
        let Some(key) = self.conns.idlest(role) else {
            return false;
        };
        if let Some(conn) = self.conns.get_mut(key) {
            conn.close_now(b"the proxy has too many connections, and this one was idle or no link");
        }
        self.lose(key, "idle or no link, and there were too many");
        true
    }
}
