//! Publishes a snapshot of the registry's newest view to all streams. Changes of a few milliseconds are built
//! together, and only snapshots that pass `check` are published. The only file of this module with a clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Builder, Encodes, Reading, ServiceContent, Snapshot, build::Step, check, pacing::Pacing,
};
use crate::registry::{Registry, ViewChanges};

/// Changes within this time of each other are published together: long enough for the instances of a node that
/// connects, short compared with a call.
const DEBOUNCE: Duration = Duration::from_millis(3);

/// The published snapshots and their counters. Clones share them.
#[derive(Clone)]
pub struct Publisher {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    encodes: Arc<Encodes>,
    refused: Arc<AtomicU64>,
}

impl Publisher {
    /// Builds the first snapshot from the current view, then follows the view until `stop` is cancelled.
    #[must_use]
    pub fn start(registry: Registry, stop: CancellationToken) -> Self {
        let encodes = Arc::new(Encodes::default());
        // Subscribed before reading, so that no change is lost between.
        let changes = registry.subscribe();
        let mut builder = Builder::new(Arc::clone(&encodes));
        let (revision, contents) = registry.read(|view| {
            let contents: Vec<_> = view
                .services()
                .filter_map(|name| ServiceContent::of(view, name))
                .collect();
            (view.revision().0, contents)
        });
        let contents = contents
            .into_iter()
            .map(|each| (Arc::clone(&each.full_name), Some(each)));
        let first = builder.apply(revision, contents).clone();
        let published = first.generation;
        let (sender, snapshots) = watch::channel(Arc::new(first));
        let refused = Arc::new(AtomicU64::new(0));
        let task = Task {
            registry,
            pacing: Pacing::new(revision),
            builder,
            published,
            sender,
            refused: Arc::clone(&refused),
        };
        let tasks = task.registry.options().tasks.clone();
        tasks.vital(
            "snapshot-publisher",
            stop.run_until_cancelled_owned(task.follow(changes)),
        );
        Self {
            snapshots,
            encodes,
            refused,
        }
    }

    /// A publisher whose snapshots a test makes.
    #[cfg(test)]
    pub(crate) fn of(snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            snapshots,
            encodes: Arc::default(),
            refused: Arc::default(),
        }
    }

    /// The newest snapshot, and each newer one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    #[must_use]
    pub fn encodes(&self) -> &Arc<Encodes> {
        &self.encodes
    }

    /// Snapshots that did not pass `check`, because of a bug in the control plane.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

struct Task {
    registry: Registry,
    pacing: Pacing,
    builder: Builder,
    /// The generation of the snapshot that was published last; later ones did not pass.
    published: u64,
    sender: watch::Sender<Arc<Snapshot>>,
    refused: Arc<AtomicU64>,
}

impl Task {
    async fn follow(mut self, mut changes: ViewChanges) {
        loop {
            let rested = self.pacing.next();
            tokio::select! {
                biased;
                batch = changes.next() => {
                    self.pacing.put(batch);
                    sleep(DEBOUNCE).await;
                    if let Some(more) = changes.next().now_or_never() {
                        self.pacing.put(more);
                    }
                }
                () = sleep_until(rested.unwrap_or_else(Instant::now)), if rested.is_some() => {}
            }
            self.build().await;
        }
    }

    /// Builds the next snapshot from the services that are due. It yields between two services, and nothing else waits
    /// for this task: sessions and their leases are independent of it.
    async fn build(&mut self) {
        let due = self.pacing.due(Instant::now());
        let complete = self.pacing.complete();
        if due.is_empty() && complete == self.builder.snapshot().revision {
            return;
        }
        let mut step = Step::default();
        for (service, changed) in due {
            let read = |view: &_| Reading::of(view, &service, changed.as_ref());
            let reading = self.registry.read(read);
            let endpoints = self.builder.take(reading, &mut step);
            self.pacing.built(service, endpoints, Instant::now());
            tokio::task::yield_now().await;
        }
        // Not the view's revision: of newer changes only those of these services are included.
        self.builder.finish(complete, step);
        self.publish();
    }

    fn publish(&mut self) {
        let snapshot = self.builder.snapshot();
        let faults = check(snapshot, self.published);
        if faults.is_empty() {
            self.published = snapshot.generation;
            self.sender.send_replace(Arc::new(snapshot.clone()));
            return;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        for fault in faults {
            tracing::error!(%fault, revision = snapshot.revision, "not publishing a snapshot");
        }
    }
}
