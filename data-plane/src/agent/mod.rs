//! The agent: takes the instances of this node from registrations and services files to the control plane and the
//! routing table. Input: registrations, files, check results, reports of the workers. Output: views of the instances,
//! with a version that rises with each change. Instances of other nodes come by xDS and are not known here.

pub mod api;
pub mod instance_table;
pub mod check_plan;
pub mod descriptor_file;
pub mod removal_log;
pub mod file_instances;
pub mod health;
pub mod keep_alive;
pub mod key;
pub mod left;
mod verdict;
mod reflection_results;
pub mod served;
pub mod listeners;
mod listening;
pub mod descriptor_index;
pub mod reflect;
pub mod removal;
pub mod restarts;
pub mod saved;
pub mod schema;
pub mod services_dir;
pub mod services_file;
pub mod session;
pub mod validate;
pub mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, Protocol};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use instance_table::{ClaimOrder, InstanceTable, Joined, Leaving, Refused, View, Views};
use key::InstanceKey;
use listeners::Listeners;

use removal_log::{Cause, Causes};
use schema::Schema;
use validate::Checked;

/// Default time to live: without a heartbeat for this long an instance is removed (docs/health.md).
pub const TTL: Duration = Duration::from_secs(15);
/// How often an instance sends a heartbeat (docs/health.md).
pub const BEAT: Duration = Duration::from_secs(5);

/// What a worker observed at an instance's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceFailure {
    /// The address refused a connection: the instance is unhealthy at once.
    Refused,
    /// The connection broke: check the instance at once.
    Lost,
}

/// The agent. Clones share its state.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    node: String,
    ttl: Duration,
    beat: Duration,
    table: Mutex<InstanceTable>,
    /// The tasks of each registration; they end with it.
    tasks: Mutex<HashMap<Arc<str>, Tasks>>,
    /// Limits how many health checks run at the same time.
    check_slots: health::CheckSlots,
    /// Limits how many instances are queried by reflection at the same time.
    reflection_slots: health::CheckSlots,
    listeners: Listeners,
    /// What is wrong with files of `--services-dir`: at most as many as it may have.
    file_faults: Mutex<BTreeMap<PathBuf, String>>,
    /// The process is stopping: from now on its instances belong to its successor.
    stopping: AtomicBool,
    version: watch::Sender<u64>,
    verdicts: verdict::VerdictWatch,
}

struct Tasks {
    failures: mpsc::Sender<InstanceFailure>,
    /// Wakes the reflection task to query the instance again.
    reflect_again: Arc<Notify>,
    _stop: DropGuard,
}

impl Agent {
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self::with_ttl(node, TTL, BEAT)
    }

    #[must_use]
    pub fn with_ttl(node: &str, ttl: Duration, beat: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                node: node.to_owned(),
                ttl,
                beat,
                table: Mutex::new(InstanceTable::new(ttl)),
                tasks: Mutex::new(HashMap::new()),
                check_slots: health::CheckSlots::default(),
                reflection_slots: health::CheckSlots::of(
                    reflect::MAX_CONCURRENT,
                    reflect::MAX_CONCURRENT_RETRIES,
                ),
                listeners: Listeners::default(),
                file_faults: Mutex::default(),
                stopping: AtomicBool::new(false),
                version: watch::Sender::new(0),
                verdicts: verdict::VerdictWatch::default(),
            }),
        }
    }

    #[must_use]
    pub fn node(&self) -> &str {
        &self.inner.node
    }

    /// The version of the newest change; wakes on each.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// The instances now, and the version of the table.
    #[must_use]
    pub fn views(&self) -> (u64, Views) {
        let table = self.table();
        (table.version(), table.views())
    }

    /// The order in which the services of this node claimed their paths.
    #[must_use]
    pub fn claims(&self) -> ClaimOrder {
        self.table().claims().clone()
    }

    /// Like [`Self::views`], with the removals that the control plane does not know of; it knows all changes up to
    /// version `known`.
    #[must_use]
    pub fn unreported(&self, known: u64) -> (u64, Views, Causes) {
        let mut table = self.table();
        (table.version(), table.views(), table.gone(known))
    }

    #[must_use]
    pub fn view(&self, key: &InstanceKey) -> Option<Arc<View>> {
        self.table().view(key).cloned()
    }

    /// The descriptors of an instance of this node, by hash.
    #[must_use]
    pub fn schema(&self, sha256: &str) -> Option<Schema> {
        let table = self.table();
        let views = table.views();
        views
            .values()
            .filter_map(|v| v.schema.as_ref())
            .find(|s| s.sha256 == sha256)
            .cloned()
    }

    /// The instances that registered themselves, for the state dir.
    #[must_use]
    pub fn registered(&self) -> Vec<Arc<View>> {
        self.table().registered()
    }

    /// The addresses on which this proxy itself listens.
    #[must_use]
    pub fn listeners(&self) -> &Listeners {
        &self.inner.listeners
    }

    /// Adds a listener of the proxy, bound or planned. An instance with its address is removed.
    pub fn add_listener(&self, name: &'static str, at: SocketAddr) {
        self.inner.listeners.add(name, at);
        let (_, views) = self.views();
        for (key, view) in &views {
            if let Some(listener) = self.inner.listeners.at(view.address) {
                error!(instance = %key, address = %view.address, listener, "removed: its address is a listener of this proxy");
                self.remove_instance(&view.registration, Some(Cause::OwnListener(listener)));
            }
        }
    }

    /// The process is stopping: it takes no more registrations, and keeps an instance whose keep-alive stream
    /// ends, because that instance now registers with the successor.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
    }

    fn is_stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::SeqCst)
    }

    fn own_listener(&self, checked: &Checked) -> Option<Refused> {
        let listener = self.inner.listeners.at(checked.address)?;
        Some(Refused::OwnListener {
            key: InstanceKey::of(&checked.instance),
            address: checked.address,
            listener,
        })
    }

    /// Adds or replaces an instance and starts its checks.
    ///
    /// # Errors
    /// A file names it, the node is full, the process is stopping, or its address is that of one of the proxy's
    /// listeners.
    pub fn register(&self, checked: Checked) -> Result<Arc<str>, Refused> {
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if let Some(refused) = self.own_listener(&checked) {
            return Err(refused);
        }
        let registration: Arc<str> = uuid::Uuid::new_v4().to_string().into();
        let joined = self.edit(|table| table.register(checked, &registration, Instant::now()))?;
        info!(instance = %joined.key, address = %joined.address, "registered");
        if let Some(other) = joined.ousted {
            warn!(
                instance = %joined.key,
                address = %joined.address,
                %other,
                "replaced a running instance with the same id: give each instance of a service on \
                 this node its own id"
            );
        }
        self.start(joined);
        Ok(registration)
    }

    /// Restores the instances of the last run, except those whose address is now one of the proxy's listeners.
    pub fn restore(&self, last: saved::Restored) {
        self.edit(|table| table.restore_claims(&last.claims));
        for (view, plan) in last.instances {
            if let Some(listener) = self.inner.listeners.at(view.address) {
                warn!(address = %view.address, listener, "an instance of the last run has the \
                    address of a listener of this proxy: ignored");
                continue;
            }
            let joined = Joined {
                key: InstanceKey::of(&view.instance),
                registration: Arc::clone(&view.registration),
                address: view.address,
                plan,
                checked_by: view.checked_by,
                has_reflection: view.instance.protocol == i32::from(Protocol::Grpc),
                ousted: None,
            };
            self.edit(|table| table.restore(view, Instant::now()));
            self.start(joined);
        }
        self.restore_left(last.left);
    }

    /// The instance gets no new calls from now on. `removal` waits for the acknowledgements and then removes it.
    /// `unasked` is the cause if the instance did not ask for it.
    /// It waits for its calls to end for at most `finish`.
    pub fn drain(
        &self,
        registration: &str,
        unasked: Option<Cause>,
        finish: Duration,
    ) -> Option<Leaving> {
        let now = Instant::now();
        let leaving = self.edit(|table| table.drain(registration, unasked, now, finish))?;
        info!(instance = %leaving.key, "draining");
        Some(leaving)
    }

    /// Removes an instance at its own request. Returns its key and the version of the change.
    pub fn deregister(&self, registration: &str) -> Option<(InstanceKey, u64)> {
        self.remove_instance(registration, None)
    }

    /// Removes an instance; `unasked` is the cause if the instance did not ask for it.
    pub fn remove_instance(
        &self,
        registration: &str,
        unasked: Option<Cause>,
    ) -> Option<(InstanceKey, u64)> {
        let out = self.edit(|table| {
            table
                .deregister(registration, unasked)
                .map(|key| (key, table.version()))
        });
        if let Some((key, _)) = &out {
            info!(instance = %key, "deregistered");
        }
        out
    }

    fn stream_opened(&self, registration: &str) -> Option<u64> {
        self.edit(|table| table.stream_opened(registration, Instant::now()))
    }

    fn beat(&self, registration: &str) -> Option<(Health, String)> {
        self.table().beat(registration, Instant::now())
    }

    fn stream_closed(&self, registration: &str, stream: u64, cause: Cause) {
        if self.is_stopping() {
            return;
        }
        let words = cause.to_string();
        if let Some(key) = self.edit(|table| table.stream_closed(registration, stream, cause)) {
            warn!(instance = %key, "removed: {words}");
        }
    }

    /// Returns once every instance has had its first check, and every healthy gRPC instance has reported what it serves
    /// or has failed to. The caller bounds the wait.
    pub async fn checks_done(&self) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.table().checks_done() || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Handles what a worker observed. An address that refuses connections is unhealthy at once, before its next check.
    pub fn report_failure(&self, key: &InstanceKey, failure: InstanceFailure) {
        let Some(view) = self.view(key) else { return };
        if failure == InstanceFailure::Refused {
            let reason = format!("{} refused a connection", view.address);
            self.set_health(key, &view.registration, Health::Unhealthy, &reason);
        }
        if let Some(tasks) = lock(&self.inner.tasks).get(&view.registration) {
            // If the channel is full, a check is due anyway.
            let _ = tasks.failures.try_send(failure);
        }
    }

    /// Removes instances whose heartbeat is overdue. Runs until the process ends, in one task of the process.
    pub async fn sweep(self) {
        // Wakes at least every quarter of the TTL, because each beat moves its deadline.
        let longest = self.inner.ttl / 4;
        loop {
            let next = self.table().next_expiry();
            let wait = next.map_or(longest, |at| {
                at.saturating_duration_since(Instant::now()).min(longest)
            });
            tokio::time::sleep(wait.max(Duration::from_millis(5))).await;
            if self.is_stopping() {
                return std::future::pending().await;
            }
            for (key, cause) in self.edit(|table| table.expire(Instant::now())) {
                match cause {
                    None => info!(instance = %key, "removed: its time to drain is over"),
                    Some(cause) => warn!(instance = %key, "removed: {cause}"),
                }
            }
        }
    }

    /// Runs the checks of a registration until it ends.
    fn start(&self, joined: Joined) {
        // Each sighting leads to the same check, so two waiting ones are enough.
        let (failures, seen) = mpsc::channel(2);
        let stop = CancellationToken::new();
        let registration = Arc::clone(&joined.registration);
        let reflect_again = Arc::new(Notify::new());
        if joined.has_reflection {
            let reflection = reflect::run(self.clone(), joined.clone(), Arc::clone(&reflect_again));
            tokio::spawn(stop.clone().run_until_cancelled_owned(reflection));
        }
        tokio::spawn(stop.clone().run_until_cancelled_owned(health::watch(
            self.clone(),
            joined,
            seen,
        )));
        lock(&self.inner.tasks).insert(
            Arc::clone(&registration),
            Tasks {
                failures,
                reflect_again,
                _stop: stop.drop_guard(),
            },
        );
        // It may have been replaced meanwhile.
        if !self.table().is_registered(&registration) {
            lock(&self.inner.tasks).remove(&registration);
        }
    }

    fn table(&self) -> MutexGuard<'_, InstanceTable> {
        lock(&self.inner.table)
    }

    /// Changes the instance table. If it changed, wakes the subscribers and ends the tasks of registrations that are
    /// gone.
    fn edit<R>(&self, f: impl FnOnce(&mut InstanceTable) -> R) -> R {
        let (out, version, changed) = {
            let mut table = self.table();
            let before = table.version();
            let out = f(&mut table);
            (out, table.version(), table.version() != before)
        };
        if changed {
            {
                let mut tasks = lock(&self.inner.tasks);
                let table = self.table();
                tasks.retain(|registration, _| table.is_registered(registration));
            }
            self.inner.version.send_if_modified(|v| {
                let newer = version > *v;
                *v = version.max(*v);
                newer
            });
        }
        out
    }
}

/// Recovers from poisoning: no code panics between the steps of a change, so the value is always consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
