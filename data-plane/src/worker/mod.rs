//! The threads that carry calls: N workers, each one event loop on epoll with listeners, connections and timers
//! of its own. Tables and commands come in by mailbox, metrics and reports go out; the rooms from listener/ to
//! observe/ are driven from here. No async runtime and no lock comes onto the path.

pub(crate) mod arena;
pub(crate) mod conn;
mod closing;
mod mailbox;
pub mod options;
pub(crate) mod state;
pub(crate) mod timers;
pub(crate) mod transport;
mod turn;
mod workers;

use std::sync::Arc;

pub use options::WorkerOptions;
pub use workers::Workers;

pub(crate) use mailbox::Command;
pub(crate) use state::Worker;
use turn::run;

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

/// What a worker tells the control side at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A local instance's address refused a connection.
    EndpointRefused {
        /// The endpoint's uid.
        uid: u64,
    },
    /// A connection to a local instance broke.
    EndpointLost {
        /// The endpoint's uid.
        uid: u64,
    },
    /// A service was called whose endpoints are not held: told once per table.
    ServiceWanted {
        /// Full name.
        service: Arc<str>,
    },
}

/// One connection as `/config` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Which worker has it.
    pub worker: usize,
    /// `outbound`, `inbound` for accepted ones, `upstream` for opened ones.
    pub kind: &'static str,
    /// The peer's address, or the path of a Unix socket.
    pub peer: String,
    /// Streams that have not ended.
    pub streams: usize,
}

#[cfg(test)]
mod tests;
