//! Slots for work that takes long, such as building the answer to a call. Few run at a time, so that the other threads
//! remain for sessions, leases and streams; and one at a time of each connection, so that a connection with one request
//! waits behind one of each other connection, not behind all of their requests. What the work is is not known here.

use std::{num::NonZero, sync::Arc, thread::available_parallelism};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Waiting callers get slots in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct WorkSlots(Arc<Semaphore>);

/// Held while the work is done; never while a client is awaited.
#[derive(Debug)]
pub(crate) struct WorkSlot {
    _places: [Option<OwnedSemaphorePermit>; 2],
}

impl WorkSlots {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// Half of the threads.
    pub(super) fn of_this_machine() -> Self {
        let threads = available_parallelism().map_or(1, NonZero::get);
        Self::new((threads / 2).max(1))
    }

    /// Waits for a slot of the connection, and then for one of all.
    pub(super) async fn take(&self, of_connection: &Self) -> WorkSlot {
        let first = of_connection.place().await;
        WorkSlot {
            _places: [first, self.place().await],
        }
    }

    /// The semaphore is never closed.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    /// Issue 10, D1.
    #[tokio::test]
    async fn a_connection_with_one_request_waits_for_one_answer_of_each_other() {
        let (all, flood, honest) = (WorkSlots::new(1), WorkSlots::new(1), WorkSlots::new(1));
        let first = all.take(&flood).await;
        let mut more: Vec<_> = (0..100).map(|_| Box::pin(all.take(&flood))).collect();
        for each in &mut more {
            assert!(poll!(each).is_pending());
        }
        let mut one = Box::pin(all.take(&honest));
        assert!(poll!(&mut one).is_pending());
        drop(first);
        for each in &mut more {
            assert!(poll!(each).is_pending(), "the other came first");
        }
        drop(one.await);
        drop(more.remove(0).await);
    }
}
