//! One connection of a worker is a transport, the protocol spoken on it and, if it was accepted, its caller. Bytes and
//! calls' frames come in, bytes and events go out. What calls are, where they go and which pool a connection belongs to
//! is decided in the modules above: only keys of calls and pools may come in here.

mod accepted;
mod cancels;
mod conn;
mod connections;
mod idlest;
mod keepalive;
mod opened;
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

/// A receiver that owes bytes takes at least so many in each stall timeout (16 KiB in 30 s, 546 bytes a second), or
/// all that waits; one byte now and then is no progress. Only looked at while the worker holds half of what it may:
/// consumers may pause for minutes otherwise.
pub(crate) const MIN_TAKEN: usize = 16 * 1024;
