//! The policy of a call: how long it may wait and how often it may be attempted. Routing gives it together with the
//! service, for the whole call. Plain values; their use does not belong here.

use std::time::Duration;

/// The same for all calls of a worker at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallPolicy {
    /// Attempts, including the first.
    pub max_attempts: u32,
    /// Bytes of a request that are kept for a retry.
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
