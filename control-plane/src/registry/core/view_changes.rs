//! Changes of the view for subscribers. A subscriber gets everything that changed since its last read as one batch. The
//! size of a batch is bounded by the names in the mesh, so slow subscribers miss nothing.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::lock;
use crate::registry::view::Batch;

/// A subscription to changes: each read returns everything that changed since the last one.
pub struct ViewChanges(Arc<Mailbox>);

impl ViewChanges {
    pub(super) fn of(mailbox: Arc<Mailbox>) -> Self {
        Self(mailbox)
    }

    /// Waits for a change. Cancel safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Batch {
        loop {
            if let Some(batch) = lock(&self.0.batch).take() {
                return batch;
            }
            self.0.arrived.notified().await;
        }
    }

    /// Waits for a batch in which replicas or their duties changed, and discards all others.
    pub(in crate::registry) async fn of_replicas(&mut self) {
        while !self.next().await.replicas {}
    }
}

#[derive(Default)]
pub(super) struct Mailbox {
    batch: Mutex<Option<Batch>>,
    arrived: Notify,
}

impl Mailbox {
    /// Empty batches are delivered too: they carry the revision.
    pub(super) fn put(&self, batch: Batch) {
        match &mut *lock(&self.batch) {
            Some(waiting) => waiting.merge(batch),
            empty => *empty = Some(batch),
        }
        self.arrived.notify_one();
    }
}
