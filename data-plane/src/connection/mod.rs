//! One connection of a worker: a transport, the protocol on it and, if it was accepted, its caller. Takes bytes and
//! frames of calls; gives bytes and events. Calls, routing and pools are the business of the modules above: here they
//! are known only by their keys.

mod accepted;
mod cancels;
mod conn;
mod connections;
mod idlest;
mod keepalive;
mod opened;
#[cfg(test)]
pub(crate) mod scripted;
mod sniff;
mod streams;
mod transport;

pub(crate) use accepted::{AcceptOptions, Accepted};
pub(crate) use cancels::{Attempted, Cancelled};
pub(crate) use conn::{Conn, Due, HELLO, Input, LATE, LINGER, OutputState};
pub(crate) use connections::Connections;
pub(crate) use opened::{OpenState, Opened};
pub(crate) use sniff::Sniff;
pub(crate) use transport::Transport;

/// A receiver for which bytes are queued counts as stalled unless it takes at least this many in each stall timeout (16
/// KiB in 30 s, 546 bytes a second), or all of them. Only checked while the worker's buffers are more than half full:
/// otherwise consumers may pause for minutes.
pub(crate) const MIN_TAKEN: usize = 16 * 1024;
