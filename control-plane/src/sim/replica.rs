//! A simulated replica: the real registry, publisher, node sessions and xDS streams over the simulated store, and how
//! its process starts, stops and is killed. No behaviour of the product is repeated here.

use std::{cell::Cell, pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    invariants,
    random::Random,
    simulation::{Simulation, Who, lock},
    store,
};
use crate::{
    names::InstanceKey,
    registry::{ClaimOptions, ExpiryOptions, IdleOptions, Membership, Registry, RegistryOptions},
    session::{Removals, Sessions},
    snapshot::Publisher,
    store::Revision,
    xds::{self, Ads, Clients},
};

/// Short, so that suspects are removed within a run.
pub(super) const SUSPECT_FOR: Duration = Duration::from_secs(40);
/// Short, so that services are forgotten and their clusters removed.
const FORGET_AFTER: Duration = Duration::from_secs(25);
/// Short, so that paths change their owners.
const RELEASE_AFTER: Duration = Duration::from_secs(20);

thread_local!(static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) });

/// Starts the wall clock.
pub(super) fn begin_wall() {
    BEGAN.set(Some(Instant::now()));
}

/// Milliseconds since the wall clock started, in virtual time.
fn wall_ms() -> u64 {
    let since = BEGAN.get().map(|began| began.elapsed()).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) struct Replica {
    /// Cancelled when the process has ended.
    pub(super) life: CancellationToken,
    stop: CancellationToken,
    pub(super) registry: Registry,
    pub(super) sessions: Sessions,
    pub(super) ads: Ads,
}

/// Starts a replica; it serves once its registry is open.
pub(super) fn start(simulation: &Simulation, n: usize) {
    let life = CancellationToken::new();
    let simulation = simulation.clone();
    tokio::spawn(async move {
        let membership = loop {
            let options = RegistryOptions {
                replica: format!("r{n}"),
                process_id: format!("r{n} since {:?}", simulation.now()),
                advertise: format!("http://10.255.0.{n}:15010"),
                wall_ms,
                stop: CancellationToken::new(),
                expiry: ExpiryOptions {
                    suspect_for: SUSPECT_FOR,
                    ..ExpiryOptions::default()
                },
                claims: ClaimOptions {
                    release_after: RELEASE_AFTER,
                    note_every: RELEASE_AFTER / 5,
                    ..ClaimOptions::default()
                },
                idle: IdleOptions {
                    forget_after: FORGET_AFTER,
                    ..IdleOptions::default()
                },
                ..RegistryOptions::default()
            };
            match Registry::open(store::client(&simulation, n, &life), options).await {
                Ok(membership) => break membership,
                Err(error) => simulation.log(format_args!("replica r{n} cannot start: {error}")),
            }
            sleep(Duration::from_millis(500)).await;
        };
        let registry = membership.registry().clone();
        let stop = registry.options().stop.clone();
        let publisher = Publisher::start(registry.clone(), stop.clone());
        let asks = ask_others(simulation.clone(), n, membership.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(asks));
        let clients = Clients::default();
        let removals = Arc::new(Watched {
            simulation: simulation.clone(),
            replica: n,
            clients: clients.clone(),
        });
        let replica = Replica {
            life,
            stop: stop.clone(),
            sessions: Sessions::new(registry.clone(), removals),
            ads: xds::service(membership, publisher, clients, stop),
            registry,
        };
        let revision = replica.registry.read(crate::registry::View::revision);
        simulation.log(format_args!("replica r{n} serves, at revision {revision}"));
        lock(&simulation.replicas).insert(n, Arc::new(replica));
    });
}

/// What `replica::watch_lag` does, without its connections.
async fn ask_others(simulation: Simulation, n: usize, membership: Membership) {
    let ask = async {
        loop {
            ask_once(&simulation, n, &membership).await;
        }
    };
    tokio::join!(ask, membership.update_lag_at_changes());
}

async fn ask_once(simulation: &Simulation, n: usize, membership: &Membership) {
    sleep(Duration::from_secs(1)).await;
    for (m, other) in lock(&simulation.replicas).iter() {
        if *m != n && simulation.joined(Who::Replica(n), Who::Replica(*m)) {
            let seen = other.registry.read(crate::registry::View::revision);
            membership.on_peer_revision(&format!("r{m}").into(), seen);
        }
    }
    membership.update_lag();
}

/// kill -9: it sends nothing more.
pub(super) fn kill(simulation: &Simulation, n: usize) {
    let Some(replica) = lock(&simulation.replicas).remove(&n) else {
        return;
    };
    simulation.log(format_args!("replica r{n} is killed"));
    replica.life.cancel();
    replica.stop.cancel();
}

/// SIGTERM: it ends its streams with a status, then exits.
pub(super) async fn stop(simulation: &Simulation, random: &mut Random, n: usize) {
    let Some(replica) = lock(&simulation.replicas).remove(&n) else {
        return;
    };
    simulation.log(format_args!("replica r{n} is stopping"));
    replica.stop.cancel();
    sleep(random.millis(100..=2000)).await;
    replica.life.cancel();
}

/// The removals of one replica; each answer is checked.
struct Watched {
    simulation: Simulation,
    replica: usize,
    clients: Clients,
}

impl Removals for Watched {
    fn acknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        max_wait: Duration,
    ) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>> {
        let queried_at = self.simulation.now();
        let (simulation, replica) = (self.simulation.clone(), self.replica);
        let waits = self
            .clients
            .acknowledged(instance.clone(), revision, max_wait);
        Box::pin(async move {
            let missing = waits.await;
            if missing.is_empty() {
                invariants::on_acknowledged(&simulation, replica, &instance, revision, queried_at);
            }
            missing
        })
    }
}
