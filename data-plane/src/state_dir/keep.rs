//! Keeps one file of the state dir up to date. Input: a value. Output: whether it was written. Each write is followed
//! by a pause, so that its caller can loop. What changed, and when, is not known here.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::StateDir;

/// A disk that is full or a folder that may not be written is tried again so often, whether something changes or not.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug)]
pub struct Keeper {
    dir: StateDir,
    file: &'static str,
    rest: Duration,
    pub(super) again: Duration,
    /// What a restart loses while the file cannot be written: for the log.
    loss: &'static str,
    failing: bool,
}

impl Keeper {
    /// `rest` lies between two writes: what comes in this time is one more write.
    #[must_use]
    pub fn new(dir: StateDir, file: &'static str, rest: Duration, loss: &'static str) -> Self {
        Self {
            dir,
            file,
            rest,
            again: TRY_AGAIN,
            loss,
            failing: false,
        }
    }

    /// Writes and rests. False if it failed, and it is time to try again with what is newest then.
    pub async fn write(&mut self, value: impl FnOnce() -> Vec<u8> + Send + 'static) -> bool {
        let written = self.dir.write_off_thread(self.file, value).await;
        match &written {
            Ok(()) if self.failing => info!("the state dir can be written again"),
            Err(error) if !self.failing => {
                warn!("the state dir cannot be written ({error}): {}", self.loss);
            }
            _ => {}
        }
        self.failing = written.is_err();
        sleep(if self.failing { self.again } else { self.rest }).await;
        !self.failing
    }
}
