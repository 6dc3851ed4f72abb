//! The threads that carry calls: N workers, each one epoll event loop with its own listeners, connections and timers.
//! Takes tables and commands by mailbox; gives metrics and reports. What happens to calls is in `exchange`. No async
//! runtime and no lock may be on the path of a call.

mod accept;
mod calls_watch;
mod drain;
mod mailbox;
mod turn;
mod workers;

pub use crate::caller::Role;
pub use crate::observe::Report;
pub use crate::settings::WorkerOptions;
pub use calls_watch::CallsInFlight;
pub use workers::Workers;

use mailbox::Command;
use turn::run;

/// One connection as shown in `/config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Index of its worker.
    pub worker: usize,
    /// `outbound`, `inbound` for accepted ones, `upstream` for opened ones.
    pub kind: &'static str,
    /// The peer's address; `unix` for a Unix socket, `unknown` if the peer was gone already.
    pub peer: String,
    /// Streams that have not ended.
    pub streams: usize,
}

#[cfg(test)]
mod tests;
