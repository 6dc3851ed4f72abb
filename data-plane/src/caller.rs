//! Who makes a call: the listener that it came by, the peer at the other end of the connection, and the account that its
//! use of shared resources is charged to. Plain values; no socket may come in here.

use std::fmt;
use std::net::SocketAddr;

use crate::keys::ConnKey;

/// Which of the two listeners a call came in by.
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
    /// A program of this node, by a Unix socket or the proxy's own socket pair.
    Unix,
    /// It was gone before it could be looked up.
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

/// Who is at the other end of a connection that was accepted. An identity will stand here beside the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) role: Role,
    pub(crate) peer: Peer,
}

/// What one call is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// The service's number on this worker; 0 for the proxy's own services.
    pub(crate) service: u32,
    /// The connection that the call came on: of a local program, or on inbound of another proxy.
    pub(crate) caller: ConnKey,
}
