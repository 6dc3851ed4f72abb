//! Limits how many checks of a node run at once. A check waits for a slot. Instances that failed last time have slots
//! of their own, so that many hanging instances do not delay those that answer. No check is made here.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Concurrent checks of instances that passed last time or are new.
const QUICK: usize = 256;
/// Concurrent checks of instances that failed last time; each may take its whole timeout.
const SLOW: usize = 64;

#[derive(Debug)]
pub(crate) struct CheckSlots {
    quick: Semaphore,
    slow: Semaphore,
}

impl Default for CheckSlots {
    fn default() -> Self {
        Self::of(QUICK, SLOW)
    }
}

impl CheckSlots {
    /// `quick` slots for all, and `slow` slots for those that failed last time.
    pub(crate) fn of(quick: usize, slow: usize) -> Self {
        Self {
            quick: Semaphore::new(quick),
            slow: Semaphore::new(slow),
        }
    }

    /// Waits for a slot; dropping the permit frees it.
    pub(crate) async fn enter(&self, failed: bool) -> Option<SemaphorePermit<'_>> {
        let lane = if failed { &self.slow } else { &self.quick };
        // The semaphore is never closed.
        lane.acquire().await.ok()
    }
}
