//! Waits for what a predecessor with the same options still has: one that is stopping releases its state dir and
//! its ports within a moment. Input: an attempt to take something. Output: its result, once it succeeds, fails for
//! another reason, or the time is over.

use std::time::Duration;

use heddle_listen::BindError;
use tokio::time::{Instant, sleep};

use super::StartError;
use crate::{listener::ListenError, state_dir::StateDirError};

/// The longest wait, from the start of this process.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The pause between two attempts.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Predecessor {
    until: Instant,
}

impl Predecessor {
    /// The wait begins now.
    pub(super) fn new() -> Self {
        Self {
            until: Instant::now() + LONGEST_WAIT,
        }
    }

    /// Repeats `take` while another process has what it takes.
    pub(super) async fn released<T>(
        &self,
        mut take: impl FnMut() -> Result<T, StartError>,
    ) -> Result<T, StartError> {
        loop {
            match take() {
                Err(error) if is_held(&error) && Instant::now() < self.until => {
                    sleep(POLL_INTERVAL).await;
                }
                done => return done,
            }
        }
    }
}

fn is_held(error: &StartError) -> bool {
    use BindError::{PathInUse, PortInUse};
    matches!(
        error,
        StartError::StateDir(StateDirError::InUse { .. })
            | StartError::Listen {
                source: ListenError::Bind(PortInUse { .. } | PathInUse { .. }),
                ..
            }
    )
}
