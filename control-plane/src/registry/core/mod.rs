//! The registry's handle: the store, the view at the store's newest revision, and what the other parts of the registry
//! share: subscriptions, recording of events, times of heartbeats, and whether the store answers. This module must not
//! depend on node leases, membership or the leader, which use it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use crate::{
    registry::{
        model::Node,
        options::{RegistryError, RegistryOptions},
        view::View,
    },
    store::{LeaseId, Revision, Store, StoreError},
};

pub(in crate::registry) mod events;
pub(in crate::registry) mod instance_events;
mod follow;
mod schema;
mod store_health;
mod view_changes;

use events::EventRecorder;
use follow::load;
use instance_events::InstanceEvents;
pub use schema::{MAX_SCHEMA_BYTES, SchemaError};
use store_health::StoreHealth;
use view_changes::Mailbox;
pub use view_changes::ViewChanges;

/// Attempts to read a store that is compacted during the read.
const LOADS: usize = 5;

/// The registry of this replica. Clones share it.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    options: RegistryOptions,
    view: RwLock<View>,
    revision: watch::Sender<Revision>,
    subscribers: Mutex<Vec<Weak<Mailbox>>>,
    node_watches: Mutex<HashMap<String, watch::Sender<Option<Node>>>>,
    /// When each node with a session on this replica sent its last heartbeat; bounded by the nodes that are alive.
    beats: Mutex<HashMap<String, Instant>>,
    event_recorder: EventRecorder,
    instance_events: InstanceEvents,
    store_health: StoreHealth,
    /// Counts changes of the proxies' listener addresses.
    listeners: AtomicU64,
    /// Claims of paths that exceeded the limits.
    refused_claims: AtomicU64,
}

impl Registry {
    /// Reads the whole store, then follows it. When this returns, the view is loaded: a replica that served before that
    /// would withdraw the endpoints of all clients.
    pub async fn load(
        store: Arc<dyn Store>,
        options: RegistryOptions,
    ) -> Result<Self, RegistryError> {
        let mut loaded = load(&*store).await;
        // The store compacted the revision during the read: read again at the current one.
        for _ in 0..LOADS {
            if !matches!(loaded, Err(StoreError::Compacted { .. })) {
                break;
            }
            loaded = load(&*store).await;
        }
        let (view, changes) = loaded?;
        let registry = Self(Arc::new(Inner {
            store,
            options,
            revision: watch::Sender::new(view.revision()),
            view: RwLock::new(view),
            subscribers: Mutex::default(),
            node_watches: Mutex::default(),
            beats: Mutex::default(),
            event_recorder: EventRecorder::default(),
            instance_events: InstanceEvents::default(),
            store_health: StoreHealth::default(),
            listeners: AtomicU64::new(0),
            refused_claims: AtomicU64::new(0),
        }));
        let follower = registry.clone();
        // When restarted, it reads the whole store again, so it misses no change.
        let mut first = Some(changes);
        registry
            .options()
            .tasks
            .restarted("registry-follower", move || {
                let stop = follower.options().stop.clone();
                stop.run_until_cancelled_owned(follower.clone().follow(first.take()))
            });
        let telling = registry.clone();
        registry
            .options()
            .tasks
            .restarted("instance-events", move || {
                let stop = telling.options().stop.clone();
                stop.run_until_cancelled_owned(instance_events::run(telling.clone()))
            });
        Ok(registry)
    }

    /// How long the store has not answered this replica; none if it answers.
    #[must_use]
    pub fn store_away(&self) -> Option<Duration> {
        self.0.store_health.away()
    }

    pub(in crate::registry) fn store_health(&self) -> &StoreHealth {
        &self.0.store_health
    }

    /// Reports the result of a request to the store.
    pub(in crate::registry) fn on_store_result<T>(&self, result: &Result<T, StoreError>) {
        self.0
            .store_health
            .on_result(result, self.options().lease_ttl);
    }

    /// Ends a lease that is not needed. If that fails, the lease expires by itself.
    pub(in crate::registry) async fn revoke_unused(&self, lease: LeaseId) {
        if let Err(error) = self.store().revoke(lease).await {
            tracing::debug!(%error, "cannot revoke an unused lease");
        }
    }

    pub(in crate::registry) fn instance_events(&self) -> &InstanceEvents {
        &self.0.instance_events
    }

    pub(in crate::registry) fn event_recorder(&self) -> &EventRecorder {
        &self.0.event_recorder
    }

    /// Reads the view. `f` must be short and must not block: the view cannot change meanwhile.
    pub fn read<R>(&self, f: impl FnOnce(&View) -> R) -> R {
        f(&self.0.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Subscribes to changes from now on. To miss no change, subscribe first and read the view afterwards.
    #[must_use]
    pub fn subscribe(&self) -> ViewChanges {
        let mailbox = Arc::new(Mailbox::default());
        let mut subscribers = lock(&self.0.subscribers);
        subscribers.retain(|mailbox| mailbox.strong_count() > 0);
        subscribers.push(Arc::downgrade(&mailbox));
        ViewChanges::of(mailbox)
    }

    /// The descriptors with this SHA-256 (hex), exactly as the service sent them; none if the store has none.
    ///
    /// # Errors
    /// The store cannot be read, so it is unknown whether it has them.
    pub async fn schema(&self, sha256: &str) -> Result<Option<Bytes>, StoreError> {
        let found = schema::load(self.store(), sha256).await;
        self.on_store_result(&found);
        found
    }

    /// Checks the descriptors of a service and stores them under their hash.
    pub async fn keep_schema(
        &self,
        sha256: &str,
        file_descriptor_set: Bytes,
    ) -> Result<(), SchemaError> {
        schema::keep(self.store(), sha256, file_descriptor_set).await
    }

    /// The view's revision, and each change of it.
    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.0.revision.subscribe()
    }

    /// Waits until the view includes a revision.
    pub async fn reached(&self, revision: Revision) {
        // `self` owns the sender: the wait cannot fail.
        let _ = self
            .0
            .revision
            .subscribe()
            .wait_for(|now| *now >= revision)
            .await;
    }

    /// A node's current state, and each change of it.
    #[must_use]
    pub fn watch_node(&self, node: &str) -> watch::Receiver<Option<Node>> {
        let mut watches = lock(&self.0.node_watches);
        watches.retain(|_, sender| sender.receiver_count() > 0);
        let now = self.read(|view| view.node(node).cloned());
        let sender = watches
            .entry(node.to_owned())
            .or_insert_with(|| watch::Sender::new(None));
        sender.send_replace(now);
        sender.subscribe()
    }

    /// A number that grows whenever the address of a proxy's listener changes. An accepted instance may then have the
    /// address of a proxy. Read it before the view: a change in between then shows as a different number.
    #[must_use]
    pub fn listener_changes(&self) -> u64 {
        self.0.listeners.load(Ordering::Acquire)
    }

    /// Records a heartbeat of the node.
    pub(in crate::registry) fn on_beat(&self, node: &str) {
        lock(&self.0.beats).insert(node.to_owned(), Instant::now());
    }

    /// Counts the nodes that have a session on this replica and instances, and missed a heartbeat.
    pub(in crate::registry) fn late_here(&self) -> usize {
        let late = self.options().renew_interval * 3 / 2;
        self.read(|view| {
            let mut beats = lock(&self.0.beats);
            let is_here = |node: &Node| node.alive && node.replica == self.options().replica;
            beats.retain(|name, _| view.node(name).is_some_and(is_here));
            let is_late = |name: &str| beats.get(name).is_none_or(|at| at.elapsed() > late);
            view.nodes()
                .filter(|node| is_here(node) && view.instances_on(&node.name) > 0)
                .filter(|node| is_late(&node.name))
                .count()
        })
    }

    /// The number of nodes whose heartbeats are remembered.
    #[cfg(test)]
    pub(in crate::registry) fn beats(&self) -> usize {
        self.late_here();
        lock(&self.0.beats).len()
    }

    /// Counts claims of paths that exceed the limits: their services can be called by name only.
    pub(in crate::registry) fn on_refused_claims(&self, refused: usize) {
        if refused == 0 {
            return;
        }
        let before = self
            .0
            .refused_claims
            .fetch_add(refused as u64, Ordering::Relaxed);
        if before == 0 {
            let options = &self.options().claims;
            tracing::warn!(
                refused,
                at_most = options.at_most,
                at_most_in_namespace = options.at_most_in_namespace,
                "too many paths are claimed: further services are called by name only"
            );
        }
    }

    /// Claims of paths that exceeded the limits since the start.
    #[must_use]
    pub fn refused_claims(&self) -> u64 {
        self.0.refused_claims.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn options(&self) -> &RegistryOptions {
        &self.0.options
    }

    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.0.store
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
