//! How much clients may ask of one replica, and the token bucket that spreads it over time. Pure.

use std::time::Duration;

use crate::budget::Peer;

/// The bounds of a replica's streams.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open at a time, with those that have not said yet who they are.
    pub streams: usize,
    /// Of one node id at one address.
    pub streams_per_client: usize,
    /// New streams served in a second, and so many at once after a quiet time. Each starts with everything that its
    /// client lacks.
    pub streams_per_second: u32,
    pub streams_at_once: u32,
    /// So long a new stream waits for its turn; it is refused if that is not enough.
    pub admission_wait: Duration,
    /// What one stream may say in a second, and at once after a quiet time: a request is one unit, and one more for
    /// each 50 names in it. What is more waits in its connection.
    pub units_per_second: u32,
    pub units_at_once: u32,
    /// Newer states of large resources (more than 64 KiB, some 300 endpoints) go to one client at so many KiB a second,
    /// and to all together; so many at once after a quiet time. What changes meanwhile goes together.
    pub large_kib_per_second: u32,
    pub large_kib_at_once: u32,
    pub all_large_kib_per_second: u32,
    pub all_large_kib_at_once: u32,
    /// A client that owes an answer for so long, and shows no other sign of life, is cut off.
    pub stuck_after: Duration,
    /// Where there are several replicas, a stream ends after about so long (20 % more or less), so that clients that
    /// all came to one replica after an outage spread anew.
    pub max_age: Duration,
    /// A replica that holds clearly more streams than the mean of all ends so many of its own in a second, of those
    /// that are at least so old.
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

/// A stream that is not served.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("this replica serves {0} xDS streams and takes no more: try another replica")]
    Full(usize),
    #[error(
        "{peer} have {held} of the {open} xDS streams here, of at most {most}, and get no more: close some, or connect \
         to another replica"
    )]
    Share {
        peer: Peer,
        held: usize,
        open: usize,
        most: usize,
    },
    #[error(
        "node {node} has {most} xDS streams from its address here and gets no more: close some, or give each process a \
         node.id of its own"
    )]
    Client { node: String, most: usize },
    #[error(
        "more xDS clients connect at once than this replica serves ({per_second} a second): try again in a second"
    )]
    Busy { per_second: u32 },
}
