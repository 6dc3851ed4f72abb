//! The store of the run: the real machine with its real leases, behind a network. Requests come from replicas, are late,
//! lost before or after they are done, or refused while the store is down; changes go out to watches. When its leader
//! changes, leases begin anew, as etcd's do.

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
    laws,
    world::{World, lock},
};
use crate::store::{
    LeaseId,
    machine::{Machine, Saved},
};

mod client;

pub(super) use client::client;

const MAX_VALUE_BYTES: usize = 1 << 20;
/// How often leases are looked at.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Cluster {
    pub(super) machine: Machine,
    pub(super) up: bool,
    /// When leases began anew last.
    pub(super) renewed: StdInstant,
    granted: BTreeSet<LeaseId>,
    jobs: Vec<Job>,
    asked: Arc<Notify>,
}

type Apply = Box<dyn FnOnce(&World, &mut Cluster) + Send>;

/// What is to be done with the machine. Those of one millisecond are done in the order of what they are.
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
            asked: Arc::new(Notify::new()),
        }
    }

    /// Every lease has a full TTL again.
    fn renew_all(&mut self, now: StdInstant) {
        let machine = &mut self.machine;
        self.granted
            .retain(|lease| machine.keep_alive(*lease, now).is_ok());
        self.renewed = now;
    }
}

/// Does what was asked, and lets leases run out while the store is up.
pub(super) async fn run(world: World) {
    let asked = Arc::clone(&lock(&world.store).asked);
    let mut look = Instant::now() + LOOK;
    loop {
        tokio::select! {
            biased;
            () = sleep_until(look) => {
                look += LOOK;
                expire(&world);
            }
            () = asked.notified() => sleep(Duration::from_millis(1)).await,
        }
        work(&world);
    }
}

/// Whatever was asked for before this millisecond.
fn work(world: &World) {
    let now = Instant::now();
    let mut cluster = lock(&world.store);
    let (mut due, later): (Vec<Job>, Vec<Job>) = std::mem::take(&mut cluster.jobs)
        .into_iter()
        .partition(|job| job.at < now);
    if !later.is_empty() {
        cluster.asked.notify_one();
    }
    cluster.jobs = later;
    due.sort_by_key(|job| (job.at, job.order));
    for job in due {
        (job.apply)(world, &mut cluster);
    }
    cluster.machine.publish();
    drop(cluster);
    world.published.notify_waiters();
}

fn expire(world: &World) {
    let now = Instant::now().into_std();
    let mut cluster = lock(&world.store);
    if !cluster.up {
        cluster.renew_all(now);
    }
    let ended = cluster.machine.expire(now);
    drop(cluster);
    for (lease, changes) in ended {
        let events = changes.iter().flat_map(|changes| changes.events.iter());
        for event in events {
            world.say(format_args!("store: lease {lease} ran out: {}", event.key));
            laws::on_lapsed(world, &event.key);
        }
    }
}

pub(super) fn set_up(world: &World, up: bool) {
    let mut cluster = lock(&world.store);
    cluster.up = up;
    if up {
        cluster.renew_all(Instant::now().into_std());
    }
    drop(cluster);
    // Who waits looks again.
    world.change_net(|_| {});
}
