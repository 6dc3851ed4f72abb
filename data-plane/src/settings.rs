//! The settings of the workers: plain values, resolved and checked by the proxy's options.

use std::time::Duration;

use crate::policy::CallPolicy;

/// The settings of the data path. `Default` has the defaults of DESIGN §6 and §10.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Threads; at least 1.
    pub workers: usize,
    /// This node's name.
    pub node: String,
    /// Random, new with each process start.
    pub incarnation: String,
    /// How long calls may go on after `drain`.
    pub drain_timeout: Duration,
    /// Authorities that mean the proxy itself, beside IP literals, `localhost` and the node's name.
    pub own_names: Vec<String>,
    /// How long a connection to an instance or a node may take.
    pub connect_timeout: Duration,
    /// How long a new connection may take to show its preface and settings.
    pub handshake_timeout: Duration,
    /// How long calls wait for the first table, or for the endpoints of their service.
    pub ready_timeout: Duration,
    /// An upstream connection without calls is closed after this.
    pub upstream_idle: Duration,
    /// An upstream connection with calls that has been silent for this long is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// And given up if it gives none for this long.
    pub keepalive_timeout: Duration,
    /// Connections per endpoint and worker: another is opened while calls wait for a stream.
    pub upstream_connections: usize,
    /// Connections on outbound per worker; over it the idlest one goes.
    pub outbound_connections: usize,
    /// Connections on inbound per worker; over it the idlest one goes. Strangers there take no place of outbound's.
    pub inbound_connections: usize,
    /// How long a caller may take to send its first request.
    pub first_request_timeout: Duration,
    /// Calls of one service that may wait for a stream, and as many for its endpoints, per worker. One caller's
    /// connection may have 1,024 of them, which is more than it has streams; the rest is for others.
    pub pending_calls: usize,
    /// How long such a call waits for a stream before it is refused.
    pub pending_timeout: Duration,
    /// Bytes of a request kept for another attempt.
    pub replay_bytes: usize,
    /// Bytes taken in and not passed on, per worker; over it new calls are refused.
    pub held_bytes: usize,
    /// A call whose receiver takes nothing for this long is cut, once half of `held_bytes` is in use.
    pub stall_timeout: Duration,
    /// Attempts per call, the first included.
    pub max_attempts: u32,
}

impl WorkerOptions {
    /// The policy of calls that no rule gives another.
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
            held_bytes: 64 * 1024 * 1024,
            stall_timeout: Duration::from_secs(30),
            max_attempts: 8,
        }
    }
}
