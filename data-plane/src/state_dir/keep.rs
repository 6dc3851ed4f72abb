//! Keeps one file of the state dir up to date. Input: a value. Output: whether it was written. Each write is followed
//! by a pause, so that the caller can loop. What changed, and when, is not known here.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::StateDir;

/// How soon a failed write (disk full, folder read-only) is retried, even if nothing changed.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// A change in whether the file can be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Failing,
    Restored,
}

/// See the module documentation.
#[derive(Debug)]
pub struct StateWriter {
    dir: StateDir,
    file: &'static str,
    rest: Duration,
    pub(super) again: Duration,
    /// For the log: what a restart loses while the file cannot be written.
    loss: &'static str,
    failing: bool,
}

impl StateWriter {
    /// `rest` is the pause after a write; changes within it go into one more write.
    #[must_use]
    pub fn new(dir: StateDir, file: &'static str, rest: Duration, loss: &'static str) -> Self {
        Self {
            dir,
            file,
            rest,
            again: RETRY_PAUSE,
            loss,
            failing: false,
        }
    }

    /// Writes and pauses. False if the write failed: then the caller retries with the newest value.
    pub async fn write(&mut self, value: impl FnOnce() -> Vec<u8> + Send + 'static) -> bool {
        let written = self.dir.write_off_thread(self.file, value).await;
        match (self.change(written.is_ok()), &written) {
            (Some(Change::Restored), _) => info!("the state dir can be written again"),
            (Some(Change::Failing), Err(error)) => {
                warn!("cannot write to the state dir ({error}): {}", self.loss);
            }
            _ => {}
        }
        self.failing = written.is_err();
        sleep(if self.failing { self.again } else { self.rest }).await;
        !self.failing
    }

    /// What this result changes, to be logged once.
    pub(super) fn change(&self, written: bool) -> Option<Change> {
        match (self.failing, written) {
            (false, false) => Some(Change::Failing),
            // After the release nothing is written, so success says nothing about the disk.
            (true, true) if !self.dir.is_released() => Some(Change::Restored),
            _ => None,
        }
    }
}
