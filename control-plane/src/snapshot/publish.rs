//! Keeps the newest snapshot at the registry's newest view. In come the registry's batches, a few milliseconds of
//! them at a time; out goes each snapshot that passed `check`, to all streams at once. The only file of this room
//! with a clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Builder, Encodes, ServiceContent, Snapshot, check};
use crate::registry::{Batch, Registry, ServiceName, Subscription};

/// Changes that come within this time of each other go out together: long enough for the instances of a node that
/// connects, short beside a call.
const DEBOUNCE: Duration = Duration::from_millis(3);

/// The published snapshots and their figures. Clones share them.
#[derive(Clone)]
pub struct Publisher {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    encodes: Arc<Encodes>,
    refused: Arc<AtomicU64>,
}

impl Publisher {
    /// Makes the first snapshot of the view as it stands, then follows it until `stop`.
    #[must_use]
    pub fn start(registry: Registry, stop: CancellationToken) -> Self {
        let encodes = Arc::new(Encodes::default());
        // Subscribed first, then read: nothing falls between.
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
        let (sender, snapshots) = watch::channel(Arc::new(first));
        let refused = Arc::new(AtomicU64::new(0));
        let task = Task {
            registry,
            builder,
            sender,
            refused: Arc::clone(&refused),
        };
        tokio::spawn(stop.run_until_cancelled_owned(task.follow(changes)));
        Self {
            snapshots,
            encodes,
            refused,
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

    /// Snapshots that did not pass `check`: a fault of ours.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

struct Task {
    registry: Registry,
    builder: Builder,
    sender: watch::Sender<Arc<Snapshot>>,
    refused: Arc<AtomicU64>,
}

impl Task {
    async fn follow(mut self, mut changes: Subscription) {
        loop {
            let mut batch = changes.next().await;
            tokio::time::sleep(DEBOUNCE).await;
            if let Some(more) = changes.next().now_or_never() {
                batch.merge(more);
            }
            self.fold(&batch);
        }
    }

    fn fold(&mut self, batch: &Batch) {
        let changed = self.registry.read(|view| {
            let services = batch.services.iter();
            let content =
                |name: &ServiceName| (name.to_string().into(), ServiceContent::of(view, name));
            services.map(content).collect::<Vec<_>>()
        });
        // The batch's revision, not the view's: of what is newer only these services are in.
        self.builder.apply(batch.revision.0, changed);
        self.publish();
    }

    fn publish(&self) {
        let snapshot = self.builder.snapshot();
        let faults = check(snapshot);
        if faults.is_empty() {
            self.sender.send_replace(Arc::new(snapshot.clone()));
            return;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        for fault in faults {
            tracing::error!(%fault, revision = snapshot.revision, "a snapshot is not published");
        }
    }
}
