//! The simulated store: the real state machine with its real leases, behind a simulated network. Requests are delayed,
//! lost before or after they are executed, or refused while the store is down. When its leader changes, all leases get
//! a full TTL again, as in etcd.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{
    invariants,
    simulation::{Simulation, lock},
};
use crate::store::{
    LeaseId,
    machine::{Machine, Saved},
};

mod client;

pub(super) use client::client;

const MAX_VALUE_BYTES: usize = 1 << 20;
/// How often expired leases are looked for.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Cluster {
    pub(super) machine: Machine,
    pub(super) up: bool,
    /// When all leases were last renewed.
    pub(super) renewed: StdInstant,
    granted: BTreeSet<LeaseId>,
    jobs: Vec<Job>,
    requested: Arc<Notify>,
}

type Apply = Box<dyn FnOnce(&Simulation, &mut Cluster) + Send>;

/// A request to execute. Those of one millisecond are executed in the order of their hashes.
struct Job {
    at: Instant,
    order: u64,
    apply: Apply,
}

impl Cluster {
    pub(super) fn new(history: usize, now: StdInstant) -> Self {
        let mut machine = Machine::new(Saved::default(), MAX_VALUE_BYTES, now);
        machine.set_max_history(history);
        Self {
            machine,
            up: true,
            renewed: now,
            granted: BTreeSet::new(),
            jobs: Vec::new(),
            requested: Arc::new(Notify::new()),
        }
    }

    /// Gives every lease a full TTL again.
    fn renew_all(&mut self, now: StdInstant) {
        let machine = &mut self.machine;
        self.granted
            .retain(|lease| machine.keep_alive(*lease, now).is_ok());
        self.renewed = now;
    }
}

/// Executes requests, and expires leases while the store is up.
pub(super) async fn run(simulation: Simulation) {
    let requested = Arc::clone(&lock(&simulation.store).requested);
    let mut check = Instant::now() + CHECK_INTERVAL;
    loop {
        tokio::select! {
            biased;
            () = sleep_until(check) => {
                check += CHECK_INTERVAL;
                expire(&simulation);
            }
            () = requested.notified() => sleep(Duration::from_millis(1)).await,
        }
        work(&simulation);
    }
}

/// Executes the requests made before this millisecond.
fn work(simulation: &Simulation) {
    let now = Instant::now();
    let mut cluster = lock(&simulation.store);
    let (mut due, later): (Vec<Job>, Vec<Job>) = std::mem::take(&mut cluster.jobs)
        .into_iter()
        .partition(|job| job.at < now);
    if !later.is_empty() {
        cluster.requested.notify_one();
    }
    cluster.jobs = later;
    due.sort_by_key(|job| (job.at, job.order));
    for job in due {
        (job.apply)(simulation, &mut cluster);
    }
    cluster.machine.publish();
    drop(cluster);
    simulation.published.notify_waiters();
}

fn expire(simulation: &Simulation) {
    let now = Instant::now().into_std();
    let mut cluster = lock(&simulation.store);
    if !cluster.up {
        cluster.renew_all(now);
    }
    let ended = cluster.machine.expire(now);
    drop(cluster);
    for (lease, changes) in ended {
        let events = changes.iter().flat_map(|changes| changes.events.iter());
        for event in events {
            simulation.log(format_args!("store: lease {lease} ran out: {}", event.key));
            invariants::on_lapsed(simulation, &event.key);
        }
    }
}

pub(super) fn set_up(simulation: &Simulation, up: bool) {
    let mut cluster = lock(&simulation.store);
    cluster.up = up;
    if up {
        cluster.renew_all(Instant::now().into_std());
    }
    drop(cluster);
    // Wakes tasks that wait for the store to be up.
    simulation.change_net(|_| {});
}
