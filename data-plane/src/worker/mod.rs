//! The threads that carry calls: N workers, each one event loop on epoll with listeners, connections and timers of its
//! own. Tables and commands come in by mailbox, metrics and reports go out; what happens to calls is `exchange`. No async
//! runtime and no lock may come onto the path of a call.

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
