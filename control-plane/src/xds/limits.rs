//! The limits on what clients may ask of one replica. Pure.

use std::time::Duration;

use crate::budget::Peer;

/// The bounds of a replica's streams.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams open at a time, including those whose first request has not come yet.
    pub streams: usize,
    /// Streams of one node id at one address.
    pub streams_per_client: usize,
    /// New streams served per second, and the burst after a quiet time. Each begins with everything that its client
    /// lacks.
    pub streams_per_second: u32,
    pub streams_at_once: u32,
    /// How long a new stream waits for its turn; it is refused if it would have to wait longer.
    pub admission_wait: Duration,
    /// What one stream may send per second, and the burst after a quiet time. A request costs one unit, and one more
    /// for each 50 names in it. Requests above the limit wait in the connection.
    pub units_per_second: u32,
    pub units_at_once: u32,
    /// How fast newer states of large resources (more than 64 KiB, some 300 endpoints) are sent to one client and to
    /// all clients together, in KiB per second, and the bursts after a quiet time. Changes that come while a resource
    /// waits are sent together.
    pub large_kib_per_second: u32,
    pub large_kib_at_once: u32,
    pub all_large_kib_per_second: u32,
    pub all_large_kib_at_once: u32,
    /// A client that owes an answer for this long, and shows no other sign of life, is cut off.
    pub stuck_after: Duration,
    /// If there are several replicas, a stream ends after about this time (20 % more or less), so that clients that all
    /// connected to one replica after an outage are spread again.
    pub max_age: Duration,
    /// If a replica has clearly more streams than the mean of all replicas, it ends this many per second, of those that
    /// are at least as old as `shed_after`.
    pub sheds_per_second: u32,
    pub shed_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 10_000,
            streams_per_client: 16,
            streams_per_second: 500,
            streams_at_once: 500,
            admission_wait: Duration::from_secs(2),
            units_per_second: 1_000,
            units_at_once: 2_000,
            large_kib_per_second: 4 << 10,
            large_kib_at_once: 4 << 10,
            all_large_kib_per_second: 128 << 10,
            all_large_kib_at_once: 256 << 10,
            stuck_after: Duration::from_secs(60),
            max_age: Duration::from_secs(30 * 60),
            sheds_per_second: 10,
            shed_after: Duration::from_secs(3 * 60),
        }
    }
}

/// Why a stream is not served.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("this replica serves {0} xDS streams, its limit: try another replica")]
    Full(usize),
    #[error(
        "{peer} have {held} of the {open} xDS streams of this replica (its limit is {most}), \
         their share: close some, or connect to another replica"
    )]
    Share {
        peer: Peer,
        held: usize,
        open: usize,
        most: usize,
    },
    #[error(
        "node {node} has {most} xDS streams from its address here, the limit: close some, or give \
         each process a node.id of its own"
    )]
    Client { node: String, most: usize },
    #[error(
        "too many xDS clients connect at once (at most {per_second} per second): try again in a \
         second"
    )]
    Busy { per_second: u32 },
}
