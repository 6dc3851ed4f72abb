//! The system's clock, for the times of events. This is the only file of the control plane that reads it: everything
//! else measures elapsed time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 according to the system's clock.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
