//! The settings of the workers: plain values, resolved and checked by the proxy's options.

use std::time::Duration;

use crate::policy::CallPolicy;

/// The settings of the data path. `Default` has the documented defaults.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Threads; at least 1.
    pub workers: usize,
    /// This node's name.
    pub node: String,
    /// Random, new with each process start.
    pub incarnation: String,
    /// How long calls may continue after `drain`.
    pub drain_timeout: Duration,
    /// Authorities that mean the proxy itself, besides IP literals, `localhost` and the node's name.
    pub own_names: Vec<String>,
    /// How long connecting to an instance or a node may take.
    pub connect_timeout: Duration,
    /// How long a link's Hello may take to arrive. Also limits, to at most 2 s, how long an opened connection takes to
    /// get ready.
    pub handshake_timeout: Duration,
    /// How long calls wait for the first table, or for the endpoints of their service.
    pub ready_timeout: Duration,
    /// Time after which an upstream connection without calls is closed.
    pub upstream_idle: Duration,
    /// A link with calls that has been silent for this long gets a PING. Connections to local instances have a fixed
    /// interval.
    pub keepalive_interval: Duration,
    /// A connection is closed if it does not answer a PING for this long.
    pub keepalive_timeout: Duration,
    /// Connections per worker to one instance or node: another is opened while calls wait for a stream.
    pub upstream_connections: usize,
    /// Connections on outbound per worker; beyond them the idlest one is closed.
    pub outbound_connections: usize,
    /// The same on inbound. Counted separately, so that unknown clients there take no places from outbound.
    pub inbound_connections: usize,
    /// How long a caller may take to send its first request.
    pub first_request_timeout: Duration,
    /// Calls per worker that may wait: for the streams and for the endpoints of one service, and for the first table.
    /// One caller connection may have 1,024 of them, which is more than its limit of streams.
    pub pending_calls: usize,
    /// How long such a call waits for a stream before it is refused.
    pub pending_timeout: Duration,
    /// Bytes of a request that are kept for a retry.
    pub replay_bytes: usize,
    /// Bytes received and not forwarded yet, per worker; calls beyond their share of it are refused or ended.
    pub buffered_bytes: usize,
    /// A call whose receiver takes less than 16 KiB in this time is ended, while more than half of `buffered_bytes` is in
    /// use. The time shrinks in proportion to a sixth when all of it is.
    pub stall_timeout: Duration,
    /// Attempts per call, including the first.
    pub max_attempts: u32,
}

impl WorkerOptions {
    /// The policy of calls for which no rule has another one.
    #[must_use]
    pub fn policy(&self) -> CallPolicy {
        CallPolicy {
            max_attempts: self.max_attempts,
            replay_bytes: self.replay_bytes,
            ready_timeout: self.ready_timeout,
            pending_timeout: self.pending_timeout,
        }
    }
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            workers: 1,
            node: String::new(),
            incarnation: String::new(),
            drain_timeout: Duration::from_secs(60),
            own_names: Vec::new(),
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(5),
            upstream_idle: Duration::from_secs(300),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            upstream_connections: 16,
            outbound_connections: 10_000,
            inbound_connections: 10_000,
            first_request_timeout: Duration::from_secs(60),
            pending_calls: 1280,
            pending_timeout: Duration::from_secs(5),
            replay_bytes: 64 * 1024,
            buffered_bytes: 64 * 1024 * 1024,
            stall_timeout: Duration::from_secs(30),
            max_attempts: 8,
        }
    }
}
