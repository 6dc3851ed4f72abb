//! The policy of a call: how long it may wait and how often it may be tried. Routing gives it with the service, and it
//! holds for the whole call. Plain values; what they are applied to may not come in.

use std::time::Duration;

/// Today the same for all calls of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallPolicy {
    /// Attempts, the first included.
    pub max_attempts: u32,
    /// Bytes of a request kept for another attempt.
    pub replay_bytes: usize,
    /// How long a call waits for the first table, or for the endpoints of its service.
    pub ready_timeout: Duration,
    /// How long a call waits for a stream before it is refused.
    pub pending_timeout: Duration,
}

#[cfg(test)]
impl CallPolicy {
    pub(crate) fn of_test() -> Self {
        Self {
            max_attempts: 5,
            replay_bytes: 64 * 1024,
            ready_timeout: Duration::from_secs(4),
            pending_timeout: Duration::from_secs(3),
        }
    }
}
