//! Turns of calls whose answers take long to build: few at a time, so that the other threads remain for sessions, leases
//! and streams; and one at a time of each connection, so that a connection with one question waits behind one of each
//! other connection, not behind all that they have asked. Which calls those are is not known here.

use std::{num::NonZero, sync::Arc, thread::available_parallelism};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Those who wait get their turns in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

/// Held while an answer is built; never while its reader is awaited.
#[derive(Debug)]
pub(super) struct Turn {
    _places: [Option<OwnedSemaphorePermit>; 2],
}

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }

    /// Half of the threads.
    pub(super) fn of_this_machine() -> Self {
        let threads = available_parallelism().map_or(1, NonZero::get);
        Self::new((threads / 2).max(1))
    }

    /// Waits for a turn of the connection, if there is one, and then for one of all.
    pub(super) async fn take(&self, of_connection: Option<&Self>) -> Turn {
        let first = match of_connection {
            Some(turns) => turns.place().await,
            None => None,
        };
        let second = self.place().await;
        Turn {
            _places: [first, second],
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
    async fn a_connection_with_one_question_waits_for_one_answer_of_each_other() {
        let (all, flood, honest) = (Turns::new(1), Turns::new(1), Turns::new(1));
        let first = all.take(Some(&flood)).await;
        let mut more: Vec<_> = (0..100).map(|_| Box::pin(all.take(Some(&flood)))).collect();
        for each in &mut more {
            assert!(poll!(each).is_pending());
        }
        let mut one = Box::pin(all.take(Some(&honest)));
        assert!(poll!(&mut one).is_pending());
        drop(first);
        for each in &mut more {
            assert!(poll!(each).is_pending(), "the other came first");
        }
        drop(one.await);
        drop(more.remove(0).await);
    }
}
