//! The caller of a call: the listener that accepted it, the peer of the connection, its namespace, and the account to which its use of
//! shared resources is charged. Plain values; sockets do not belong here.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;

use crate::keys::ConnKey;

/// The listener that accepted a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// From services of this node.
    Outbound,
    /// From other proxies.
    Inbound,
}

impl Role {
    /// As in labels and `/config`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// A program on this node, over a Unix socket or the proxy's own socket pair.
    Unix,
    /// It was gone before its address could be read.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Namespace of callers, of which only the node is known.
const NAMESPACE: &str = "default";

/// Who calls on an accepted connection. Routing, admission and failures take it as a whole. Its identity will be added
/// here, and decide the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) role: Role,
    pub(crate) peer: Peer,
    namespace: &'static str,
}

impl Caller {
    pub(crate) fn new(role: Role, peer: Peer) -> Self {
        Self {
            role,
            peer,
            namespace: NAMESPACE,
        }
    }

    /// The namespace in which names without one are looked up.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace
    }

    #[cfg(test)]
    pub(crate) fn of_test() -> Self {
        Self::new(Role::Outbound, Peer::Unix)
    }
}

/// What the resources of one call are charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// The service's number on this worker; 0 for the proxy's own services.
    pub(crate) service: u32,
    pub(crate) caller: CallerKey,
}

/// Who shares resources with others: a connection of a local program, or on inbound one of the callers whose calls
/// another proxy sends over one connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallerKey {
    conn: ConnKey,
    /// The number by which the other proxy tells its callers apart (`heddle-caller`); 0 for a local program, and
    /// for the callers of a proxy that gives no numbers.
    number: u32,
}

impl CallerKey {
    /// One of the callers behind another proxy.
    pub(crate) fn behind(proxy: ConnKey, number: u32) -> Self {
        Self {
            conn: proxy,
            number,
        }
    }
}

impl From<ConnKey> for CallerKey {
    fn from(conn: ConnKey) -> Self {
        Self { conn, number: 0 }
    }
}

impl Hash for CallerKey {
    /// One number, so that it costs no more than a connection's key.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.conn.pack() ^ u64::from(self.number).rotate_left(40)).hash(state);
    }
}

impl fmt::Debug for CallerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.conn, self.number)
    }
}
