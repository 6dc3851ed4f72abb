//! The registry's handle: keeps the view at the store's newest revision and tells subscribers what changed. In
//! come the store's changes; out go reads of the view and batches, which coalesce and are never lost. It writes
//! nothing: that is for who holds a node's lease (`lease`), for `presence`, and for who is the sweeper (`duty`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Batch, Node, RegistryError, RegistryOptions, SchemaError, View, duty,
    event::Chronicle,
    instance_events::{self, InstanceEvents},
    lag::Lags,
    presence::{Presence, Seat},
    reach::Reach,
    schema,
};
use crate::{
    names::keys,
    store::{Changes, LeaseId, Revision, Store, StoreError, Watch},
};

/// Pause before the store is read again after its watch broke.
const RELOAD_PAUSE: Duration = Duration::from_millis(200);

/// Attempts to read a store that is compacted while it is read.
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
    /// When each node whose session is here was heard of last; bounded by the nodes that are alive.
    beats: Mutex<HashMap<String, Instant>>,
    seat: Mutex<Option<Seat>>,
    /// This replica's record is gone.
    left: CancellationToken,
    chronicle: Chronicle,
    instance_events: InstanceEvents,
    reach: Reach,
    lags: Lags,
    /// Counts the changes of where proxies listen.
    listeners: AtomicU64,
    /// Claims of paths that were over the bounds.
    refused_claims: AtomicU64,
    /// How many xDS streams are here; unset: none.
    streams: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
}

impl Registry {
    /// Reads the store, follows it, and joins the replicas as its options say.
    pub async fn open(
        store: Arc<dyn Store>,
        options: RegistryOptions,
    ) -> Result<Self, RegistryError> {
        let registry = Self::load(store, options).await?;
        let advertise = registry.options().advertise.clone();
        registry.join(&advertise).await?;
        Ok(registry)
    }

    /// Reads the whole store, then follows it. The view is loaded when this returns: a replica that answered
    /// before would take every client's endpoints away.
    pub async fn load(
        store: Arc<dyn Store>,
        options: RegistryOptions,
    ) -> Result<Self, RegistryError> {
        let mut loaded = load(&*store).await;
        // While it was read the store dropped the history in between: once more, from its present.
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
            seat: Mutex::default(),
            left: CancellationToken::new(),
            chronicle: Chronicle::default(),
            instance_events: InstanceEvents::default(),
            reach: Reach::default(),
            lags: Lags::default(),
            listeners: AtomicU64::new(0),
            refused_claims: AtomicU64::new(0),
            streams: OnceLock::new(),
        }));
        let follower = registry.clone();
        // Begun anew it reads the store anew: nothing that it missed is lost.
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

    /// Tells the other replicas that this one serves, at "http://host:port", and runs for the sweeper's duty.
    pub async fn join(&self, advertise: &str) -> Result<(), RegistryError> {
        let presence = Presence::join(self, advertise).await?;
        // Before it says that it is ready this replica knows itself.
        if let Some(seat) = self.seat() {
            self.reached(seat.at).await;
        }
        let left = self.0.left.clone();
        let (tasks, stop) = (&self.options().tasks, self.options().stop.clone());
        tasks.vital("replica-presence", async move {
            // Whoever waits for its end hears of any.
            let _left = left.drop_guard();
            presence.run().await;
            (!stop.is_cancelled()).then_some(())
        });
        let registry = self.clone();
        tasks.restarted("sweeper", move || {
            let stop = registry.options().stop.clone();
            stop.run_until_cancelled_owned(duty::run(registry.clone()))
        });
        Ok(())
    }

    /// Waits, once the registry was stopped, until the others know that this replica has gone; for at most about 2 s.
    pub async fn left(&self) {
        self.0.left.cancelled().await;
    }

    /// This replica does the sweeper's work now.
    #[must_use]
    pub fn is_sweeper(&self) -> bool {
        self.held().is_some()
    }

    /// For how long the store has not answered this replica; none: it does.
    #[must_use]
    pub fn store_away(&self) -> Option<Duration> {
        self.0.reach.away()
    }

    pub(super) fn reach(&self) -> &Reach {
        &self.0.reach
    }

    pub(super) fn lags(&self) -> &Lags {
        &self.0.lags
    }

    /// A request to the store ended so.
    pub(super) fn on_store<T>(&self, result: &Result<T, StoreError>) {
        self.0.reach.on_result(result, self.options().lease_ttl);
    }

    /// Ends a lease that nobody needs; if that fails it runs out by itself.
    pub(super) async fn end_unused(&self, lease: LeaseId) {
        if let Err(error) = self.store().revoke(lease).await {
            tracing::debug!(%error, "an unused lease was not revoked");
        }
    }

    /// This replica's place; none: it has not joined, or has lost it.
    pub(super) fn seat(&self) -> Option<Seat> {
        *lock(&self.0.seat)
    }

    pub(super) fn set_seat(&self, seat: Option<Seat>) {
        *lock(&self.0.seat) = seat;
    }

    pub(super) fn instance_events(&self) -> &InstanceEvents {
        &self.0.instance_events
    }

    pub(super) fn chronicle(&self) -> &Chronicle {
        &self.0.chronicle
    }

    /// Reads the view. Short and without waiting: the view stands still meanwhile.
    pub fn read<R>(&self, f: impl FnOnce(&View) -> R) -> R {
        f(&self.0.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What changes from now on. Subscribe first, then read: nothing falls between.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        let mailbox = Arc::new(Mailbox::default());
        let mut subscribers = lock(&self.0.subscribers);
        subscribers.retain(|mailbox| mailbox.strong_count() > 0);
        subscribers.push(Arc::downgrade(&mailbox));
        Subscription(mailbox)
    }

    /// Descriptors by their hex SHA-256, as the service gave them. None if there are none.
    ///
    /// # Errors
    /// The store cannot be read: whether there are any is not known.
    pub async fn schema(&self, sha256: &str) -> Result<Option<Bytes>, StoreError> {
        let found = schema::load(self.store(), sha256).await;
        self.on_store(&found);
        found
    }

    /// Keeps descriptors of a service under their hash; they are checked first.
    pub async fn keep_schema(
        &self,
        sha256: &str,
        file_descriptor_set: Bytes,
    ) -> Result<(), SchemaError> {
        schema::keep(self.store(), sha256, file_descriptor_set).await
    }

    /// Waits until the view shows a revision.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives in `self`: the wait cannot fail.
        let _ = self
            .0
            .revision
            .subscribe()
            .wait_for(|now| *now >= revision)
            .await;
    }

    /// One node as it is, and each change of it.
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

    /// A number that rises whenever a proxy listens somewhere else than before: then instances that were taken may lie
    /// where a proxy listens. Read before the view: what changes meanwhile is another number.
    #[must_use]
    pub fn listener_changes(&self) -> u64 {
        self.0.listeners.load(Ordering::Acquire)
    }

    /// The node was heard of.
    pub(super) fn on_beat(&self, node: &str) {
        lock(&self.0.beats).insert(node.to_owned(), Instant::now());
    }

    /// Nodes that hold their lease by a session here, have something to lose, and missed a beat.
    pub(super) fn late_here(&self) -> usize {
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

    /// Nodes whose beats are remembered.
    #[cfg(test)]
    pub(super) fn beats(&self) -> usize {
        self.late_here();
        lock(&self.0.beats).len()
    }

    /// So many claims of paths are over the bounds: their services are called by name only.
    pub(super) fn on_refused_claims(&self, refused: usize) {
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

    /// Claims of paths that were over the bounds since start.
    #[must_use]
    pub fn refused_claims(&self) -> u64 {
        self.0.refused_claims.load(Ordering::Relaxed)
    }

    /// How this replica's xDS streams are counted, for the others to know; the first to say so is asked.
    pub(crate) fn count_streams_by(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.0.streams.set(Box::new(count));
    }

    pub(super) fn streams_here(&self) -> usize {
        self.0.streams.get().map_or(0, |count| count())
    }

    /// The xDS streams of each other replica, as it last told.
    pub(crate) fn streams_elsewhere(&self) -> Vec<usize> {
        let own = &self.options().replica;
        self.read(|view| {
            let others = view.replicas().filter(|it| *it.name != **own);
            others.map(|it| it.xds_streams).collect()
        })
    }

    /// How many nodes hold their lease, have something to lose, and could lapse soon: those that are late here, those
    /// that other replicas call late, and those whose replica has gone.
    pub(super) fn overdue(&self) -> usize {
        let here = self.late_here();
        let own = &self.options().replica;
        self.read(|view| {
            let told = view.replicas().filter(|it| *it.name != **own);
            let told: usize = told.map(|it| it.late_nodes).sum();
            let homeless = view.nodes().filter(|node| {
                node.alive
                    && node.replica != *own
                    && view.replica(&node.replica).is_none()
                    && view.instances_on(&node.name) > 0
            });
            here.saturating_add(told).saturating_add(homeless.count())
        })
    }

    #[must_use]
    pub fn options(&self) -> &RegistryOptions {
        &self.0.options
    }

    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// From the changes that follow the view, or from a new look at the store.
    async fn follow(self, changes: Option<Watch>) {
        let mut changes = match changes {
            Some(changes) => changes,
            None => self.reload().await,
        };
        loop {
            match changes.next().await {
                Some(Ok(changes)) => self.fold(&changes),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the registry reads its store again");
                    changes = self.reload().await;
                }
                // The store is closed.
                None => return,
            }
        }
    }

    fn fold(&self, changes: &Changes) {
        let mut batch = Batch::default();
        self.0
            .view
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(changes, &mut batch);
        self.publish(&batch);
    }

    async fn reload(&self) -> Watch {
        loop {
            tokio::time::sleep(RELOAD_PAUSE).await;
            match load(self.store()).await {
                Ok((view, changes)) => {
                    let batch = {
                        let mut held = self.0.view.write().unwrap_or_else(PoisonError::into_inner);
                        let batch = view.changes_since(&held);
                        *held = view;
                        batch
                    };
                    self.publish(&batch);
                    return changes;
                }
                Err(error) => tracing::warn!(%error, "the store cannot be read; trying again"),
            }
        }
    }

    fn publish(&self, batch: &Batch) {
        if batch.listeners {
            self.0.listeners.fetch_add(1, Ordering::Release);
        }
        {
            let mut watches = lock(&self.0.node_watches);
            for name in &batch.nodes {
                if let Some(sender) = watches.get(&**name) {
                    sender.send_replace(self.read(|view| view.node(name).cloned()));
                }
            }
            watches.retain(|_, sender| sender.receiver_count() > 0);
        }
        for mailbox in lock(&self.0.subscribers).iter().filter_map(Weak::upgrade) {
            mailbox.put(batch.clone());
        }
        self.0.revision.send_replace(self.read(View::revision));
        self.look_for_lag();
    }
}

/// Batches since the last look, merged into one: its size is bounded by the number of names in the mesh, and a
/// slow reader loses nothing.
pub struct Subscription(Arc<Mailbox>);

impl Subscription {
    /// Waits for a change. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Batch {
        loop {
            if let Some(batch) = lock(&self.0.batch).take() {
                return batch;
            }
            self.0.arrived.notified().await;
        }
    }

    /// Waits for a batch that tells of replicas or of their duties, and passes over all others.
    pub(super) async fn of_replicas(&mut self) {
        while !self.next().await.replicas {}
    }
}

#[derive(Default)]
struct Mailbox {
    batch: Mutex<Option<Batch>>,
    arrived: Notify,
}

impl Mailbox {
    /// Empty batches count too: they carry the revision.
    fn put(&self, batch: Batch) {
        match &mut *lock(&self.batch) {
            Some(waiting) => waiting.merge(batch),
            empty => *empty = Some(batch),
        }
        self.arrived.notify_one();
    }
}

async fn load(store: &dyn Store) -> Result<(View, Watch), StoreError> {
    let nodes = store.range(keys::NODES, None).await?;
    let at = nodes.revision;
    let alive = store.range(keys::ALIVE, Some(at)).await?;
    let instances = store.range(keys::INSTANCES, Some(at)).await?;
    let services = store.range(keys::SERVICES, Some(at)).await?;
    let schemas = store.range_keys(keys::SCHEMAS, Some(at)).await?;
    let condemned = store.range_keys(keys::CONDEMNED, Some(at)).await?;
    let replicas = store.range(keys::REPLICAS, Some(at)).await?;
    let duties = store.range(keys::DUTIES, Some(at)).await?;
    let events = store.range(keys::EVENTS, Some(at)).await?;
    let clashes = store.range(keys::CLASHES, Some(at)).await?;
    let claims = store.range(keys::CLAIMS, Some(at)).await?;
    let ranges = [
        &nodes, &alive, &instances, &services, &schemas, &condemned, &replicas, &duties, &events,
        &clashes, &claims,
    ];
    let view = View::load(at, ranges.into_iter().flat_map(|range| &range.items));
    let changes = store.watch("", at.next()).await?;
    Ok((view, changes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
