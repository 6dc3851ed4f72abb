//! When nodes that lost their lease leave.

use std::time::Duration;

/// How lapsed nodes leave.
#[derive(Clone, Debug)]
pub struct ExpiryOptions {
    /// How long a suspect node's instances stay in use at most. Default 10 min.
    pub suspect_for: Duration,
}

impl Default for ExpiryOptions {
    fn default() -> Self {
        Self {
            suspect_for: Duration::from_secs(600),
        }
    }
}
