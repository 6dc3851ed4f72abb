//! The invariants that are checked twice a second and at the end of a run. A temporary violation is allowed for a
//! bounded time, and not at all after the faults have ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use heddle_proto::paths::Owner;

use super::expected::{Stored, is_contested, read, rightful, wanted};
use crate::{
    sim::{
        client::{ClientResources, Flavor},
        node::SHARED,
        replica::SUSPECT_FOR,
        simulation::{ClientState, Simulation, Who, lock},
    },
    snapshot::Kind,
    store::Revision,
};

/// A living instance whose node can reach a working replica must be in the store within this time: the node notices the
/// loss (10 s), tries up to two replicas in vain (10 s each, and the pauses), and the third accepts it.
const MISSING: Duration = Duration::from_secs(45);
/// A dead instance must have left the store within this time: two TTLs if leases were renewed by a change of the
/// store's leader, the wait for other overdue nodes, the leader's own failures, and one TTL until another leader takes
/// over.
const DEAD: Duration = Duration::from_secs(50);
/// The additional time if requests to the store are lost at random: a leader that lost one expires no node for a TTL,
/// and some lose several in a row.
const LOST: Duration = Duration::from_secs(40);
/// How much longer a suspect may stay with each new leader: what was not recorded (2 s), the change of the leader (two
/// TTLs, and its start), and the TTL in which the new leader expires no node.
const HANDED_ON: Duration = Duration::from_secs(40);
/// A client that can reach a working replica must have the store's state within this time.
const LAG: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    NotInStore(String),
    StillInStore(String),
    NotAtClient(usize, String),
    StillAtClient(usize, String),
}

/// Called twice a second.
pub(in crate::sim) fn check(simulation: &Simulation) {
    let stored = read(simulation);
    let wanted = wanted(simulation);
    let mut wrong: BTreeMap<Wrong, Duration> = BTreeMap::new();
    look_at_store(simulation, &stored, &wanted, &mut wrong);
    for (n, state) in lock(&simulation.client_states).iter() {
        look_at_client(simulation, *n, state, &stored, &mut wrong);
    }
    let now = simulation.now();
    let mut invariants = lock(&simulation.invariants);
    invariants.since.retain(|what, _| wrong.contains_key(what));
    let mut broken = Vec::new();
    for (what, bound) in wrong {
        let since = *invariants.since.entry(what.clone()).or_insert(now);
        if now - since > bound {
            broken.push((what, now - since));
        }
    }
    drop(invariants);
    for (what, age) in broken {
        let invariant = match what {
            Wrong::NotInStore(_) | Wrong::NotAtClient(..) => "I1 missing",
            Wrong::StillInStore(_) | Wrong::StillAtClient(..) => "I2 stale",
        };
        simulation.broken(invariant, format_args!("{what:?} for {age:?}"));
    }
}

fn look_at_store(
    simulation: &Simulation,
    stored: &Stored,
    wanted: &BTreeMap<String, (usize, i32)>,
    wrong: &mut BTreeMap<Wrong, Duration>,
) {
    for (address, (node, _)) in wanted {
        let who = rightful(simulation)
            .find(|(_, n)| n == node)
            .map(|(who, _)| who);
        let reaches =
            who.is_some_and(|who| simulation.is_served(who)) && !is_contested(simulation, *node);
        if reaches && !stored.instances.contains_key(address) {
            wrong.insert(Wrong::NotInStore(address.clone()), MISSING);
        }
    }
    let some_replica = (0..simulation.profile.replicas).any(|n| simulation.serves(n, Who::Store));
    for (address, (node, ..)) in &stored.instances {
        let contested = node
            .trim_start_matches('n')
            .parse()
            .is_ok_and(|n| is_contested(simulation, n));
        if wanted.contains_key(address) || !some_replica || contested {
            continue;
        }
        if stored.suspects.contains(node) && has_time(simulation, node) {
            continue;
        }
        let lost = if simulation.profile.lossy > 0 {
            LOST
        } else {
            Duration::ZERO
        };
        wrong.insert(Wrong::StillInStore(address.clone()), DEAD + lost);
    }
}

/// Whether a suspect may still be in the store.
fn has_time(simulation: &Simulation, node: &str) -> bool {
    let invariants = lock(&simulation.invariants);
    let (since, duties) = invariants.suspects.get(node).copied().unwrap_or_default();
    simulation.now() - since < SUSPECT_FOR + HANDED_ON * (invariants.duties - duties)
}

fn look_at_client(
    simulation: &Simulation,
    n: usize,
    state: &ClientState,
    stored: &Stored,
    wrong: &mut BTreeMap<Wrong, Duration>,
) {
    let who = Who::Client(n);
    let served = match state.connected {
        // It has no reason to leave a replica that is cut off from the store, unless that one learns that it lags.
        Some((replica, _)) => {
            let mut others = (0..simulation.profile.replicas).filter(|m| *m != replica);
            let lags = others.any(|m| simulation.serves(m, Who::Replica(replica)));
            simulation.serves(replica, who) || (lags && simulation.is_served(who))
        }
        None => simulation.is_served(who),
    };
    if !served || state.rejected {
        return;
    }
    let resources = state.resources.addresses();
    for (address, (_, service, health)) in &stored.instances {
        let its_own = state.resources.flavor != Flavor::Grpc || state.resources.service == *service;
        let its_own = its_own && state.resources.flavor.receives(*health);
        if its_own && !resources.contains(address) {
            wrong.insert(Wrong::NotAtClient(n, address.clone()), LAG);
        }
    }
    for address in resources {
        let there = stored.instances.get(&address);
        if !there.is_some_and(|(.., health)| state.resources.flavor.receives(*health)) {
            wrong.insert(Wrong::StillAtClient(n, address), LAG);
        }
    }
}

// ---- after the faults have ended ----

/// The store, the replicas and the clients all have the expected state.
pub(in crate::sim) fn converged(simulation: &Simulation) {
    let stored = read(simulation);
    let have: BTreeMap<_, _> = stored
        .instances
        .iter()
        .map(|(address, (.., health))| (address, *health))
        .collect();
    let wanted = wanted(simulation);
    let want: BTreeMap<_, _> = wanted
        .iter()
        .map(|(address, (_, health))| (address, *health))
        .collect();
    if have != want {
        simulation.broken(
            "I3 convergence",
            format_args!("the store has {have:?}, the nodes {want:?}"),
        );
    }
    let mut versions: BTreeMap<(bool, Kind, String), String> = BTreeMap::new();
    for (n, state) in lock(&simulation.client_states).iter() {
        if state.connected.is_none() {
            simulation.broken("I3 convergence", format_args!("c{n} is not connected"));
        }
        for fault in differs(&state.resources, &stored) {
            simulation.broken("I3 convergence", format_args!("c{n}: {fault}"));
        }
        let proxy = state.resources.flavor.is_proxy();
        let delta = proxy || state.resources.flavor == Flavor::EnvoyDelta;
        for (kind, names) in state.resources.versions.iter().filter(|_| delta) {
            for (name, version) in names {
                let key = (proxy && *kind == Kind::Endpoint, *kind, name.clone());
                let first = versions.entry(key).or_insert_with(|| version.clone());
                if *first != *version && name != "heddle/outbound" {
                    simulation.broken(
                        "I3 convergence",
                        format_args!(
                            "c{n} holds {} {name} in version {version}, others in {first}",
                            kind.word()
                        ),
                    );
                }
            }
        }
    }
    same_views(simulation, stored.revision);
    paths_are_owned(simulation, &stored);
    let cluster = lock(&simulation.store);
    let all = cluster
        .machine
        .range("", None, true)
        .map(|it| it.items)
        .unwrap_or_default();
    let used: BTreeSet<_> = all.iter().filter_map(|item| item.lease).collect();
    let (used, kept) = (used.len(), cluster.machine.leases().len());
    drop(cluster);
    // If the answer to a grant was lost, its lease is unknown and expires by itself, that of an event only in an hour.
    let lost = simulation.profile.replicas;
    if kept > used + lost && simulation.profile.lossy == 0 {
        simulation.broken(
            "leases",
            format_args!("{kept} leases live, {used} have keys"),
        );
    }
}

fn same_views(simulation: &Simulation, revision: Revision) {
    let replicas = lock(&simulation.replicas);
    let mut first = None;
    for (n, replica) in replicas.iter() {
        let view = replica.registry.read(Clone::clone);
        if view.revision() != revision {
            simulation.broken(
                "I3 convergence",
                format_args!(
                    "r{n} is at revision {}, the store at {revision}",
                    view.revision()
                ),
            );
        }
        let first = first.get_or_insert_with(|| view.clone());
        if *first != view {
            simulation.broken(
                "I3 convergence",
                format_args!("the view of r{n} differs from another's"),
            );
        }
    }
    if replicas.len() != simulation.profile.replicas {
        simulation.broken(
            "I3 convergence",
            format_args!("{} replicas serve", replicas.len()),
        );
    }
}

/// Exactly the services with instances have a claim, and the oldest claim owns the path that all services want.
fn paths_are_owned(simulation: &Simulation, stored: &Stored) {
    let services = stored
        .instances
        .values()
        .map(|(_, service, _)| service.clone());
    let lived_in: BTreeSet<String> = services.collect();
    let prefix = format!("claim/proto/default/{SHARED}/");
    let claims = lock(&simulation.store).machine.range(&prefix, None, false);
    let claims = claims.map(|it| it.items).unwrap_or_default();
    let name = |key: &str| format!("{}.default", key.trim_start_matches(&prefix));
    let claimed: BTreeSet<String> = claims.iter().map(|item| name(&item.key)).collect();
    if claimed != lived_in {
        simulation.broken(
            "I8 paths",
            format_args!("{claimed:?} claim a path, and {lived_in:?} have instances"),
        );
    }
    let oldest = claims.iter().min_by_key(|item| item.create_revision);
    let oldest = oldest.map(|item| name(&item.key));
    for (n, replica) in lock(&simulation.replicas).iter() {
        let owner = replica
            .registry
            .read(|view| match view.path_owner(SHARED, "default") {
                Owner::One { owner, .. } => Some(owner.to_string()),
                Owner::Unclaimed | Owner::Unclear(_) => None,
            });
        // Without instances there are no claims any more, and each replica may report any owner or none.
        if oldest.is_some() && owner != oldest {
            simulation.broken(
                "I8 paths",
                format_args!("by r{n} {owner:?} owns a path, the oldest claim is of {oldest:?}"),
            );
        }
    }
}

fn differs(resources: &ClientResources, stored: &Stored) -> Vec<String> {
    let mut faults = Vec::new();
    let services: BTreeSet<String> = if resources.flavor == Flavor::Grpc {
        stored
            .services
            .iter()
            .filter(|service| **service == resources.service)
            .cloned()
            .collect()
    } else {
        stored.services.clone()
    };
    let mut kinds = vec![Kind::Cluster, Kind::Endpoint];
    if resources.flavor.is_proxy() {
        kinds.push(Kind::ServiceIndex);
    }
    for kind in kinds {
        let names = resources.names(kind);
        if names != services {
            faults.push(format!(
                "holds {} {names:?}, the store has {services:?}",
                kind.word()
            ));
        }
    }
    for service in &services {
        let of_it = stored
            .instances
            .iter()
            .filter(|(_, (_, of, health))| of == service && resources.flavor.receives(*health));
        let want: BTreeMap<String, i32> = of_it
            .map(|(address, (.., health))| (address.clone(), *health))
            .collect();
        let have = resources
            .endpoints
            .get(service)
            .cloned()
            .unwrap_or_default();
        if have != want {
            faults.push(format!("{service} is {have:?}, the store has {want:?}"));
        }
    }
    faults
}
