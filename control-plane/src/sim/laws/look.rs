//! The look at everything, twice a second and at the end: what is wrong may be so for a while, within a bound. In comes
//! the state of store, replicas and clients, out goes what is wrong for too long, or at all where faults have ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use heddle_proto::paths::Owner;

use super::truth::{Stored, is_contested, read, rightful, wanted};
use crate::{
    sim::{
        client::{Flavor, Held},
        node::SHARED,
        replica::SUSPECT_FOR,
        world::{Seat, Who, World, lock},
    },
    snapshot::Kind,
    store::Revision,
};

/// A living instance whose node can reach a replica that works is in the store within so long: the loss is noticed
/// (10 s), up to two replicas are tried in vain (10 s each, and the pauses), the third takes it.
const MISSING: Duration = Duration::from_secs(45);
/// A dead one has left the store within so long: two TTLs where leases began anew, the wait for others that are overdue,
/// the sweeper's own failures, and one TTL until another takes over.
const DEAD: Duration = Duration::from_secs(50);
/// Where requests to the store are lost by chance it takes so much longer: a sweeper that lost one judges nobody for a TTL,
/// and some lose several in a row.
const LOST: Duration = Duration::from_secs(40);
/// What a suspect's time may grow by with each new sweeper: what was not noted (2 s), the way to the next one (two TTLs,
/// and its start), and the TTL for which it judges nobody.
const HANDED_ON: Duration = Duration::from_secs(40);
/// A client that can reach a replica that works shows the store's state within so long.
const LAG: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    NotInStore(String),
    StillInStore(String),
    NotAtClient(usize, String),
    StillAtClient(usize, String),
}

/// Twice a second.
pub(in crate::sim) fn look(world: &World) {
    let stored = read(world);
    let wanted = wanted(world);
    let mut wrong: BTreeMap<Wrong, Duration> = BTreeMap::new();
    look_at_store(world, &stored, &wanted, &mut wrong);
    for (n, seat) in lock(&world.seats).iter() {
        look_at_client(world, *n, seat, &stored, &mut wrong);
    }
    let now = world.now();
    let mut laws = lock(&world.laws);
    laws.since.retain(|what, _| wrong.contains_key(what));
    let mut broken = Vec::new();
    for (what, bound) in wrong {
        let since = *laws.since.entry(what.clone()).or_insert(now);
        if now - since > bound {
            broken.push((what, now - since));
        }
    }
    drop(laws);
    for (what, age) in broken {
        let law = match what {
            Wrong::NotInStore(_) | Wrong::NotAtClient(..) => "I1 missing",
            Wrong::StillInStore(_) | Wrong::StillAtClient(..) => "I2 stale",
        };
        world.broken(law, format_args!("{what:?} for {age:?}"));
    }
}

fn look_at_store(
    world: &World,
    stored: &Stored,
    wanted: &BTreeMap<String, (usize, i32)>,
    wrong: &mut BTreeMap<Wrong, Duration>,
) {
    for (address, (node, _)) in wanted {
        let who = rightful(world).find(|(_, n)| n == node).map(|(who, _)| who);
        let reaches = who.is_some_and(|who| world.is_served(who)) && !is_contested(world, *node);
        if reaches && !stored.instances.contains_key(address) {
            wrong.insert(Wrong::NotInStore(address.clone()), MISSING);
        }
    }
    let some_replica = (0..world.profile.replicas).any(|n| world.serves(n, Who::Store));
    for (address, (node, ..)) in &stored.instances {
        let contested = node
            .trim_start_matches('n')
            .parse()
            .is_ok_and(|n| is_contested(world, n));
        if wanted.contains_key(address) || !some_replica || contested {
            continue;
        }
        if stored.suspects.contains(node) && has_time(world, node) {
            continue;
        }
        let lost = if world.profile.lossy > 0 {
            LOST
        } else {
            Duration::ZERO
        };
        wrong.insert(Wrong::StillInStore(address.clone()), DEAD + lost);
    }
}

/// Whether a suspect may still be in the store.
fn has_time(world: &World, node: &str) -> bool {
    let laws = lock(&world.laws);
    let (since, duties) = laws.suspects.get(node).copied().unwrap_or_default();
    world.now() - since < SUSPECT_FOR + HANDED_ON * (laws.duties - duties)
}

fn look_at_client(
    world: &World,
    n: usize,
    seat: &Seat,
    stored: &Stored,
    wrong: &mut BTreeMap<Wrong, Duration>,
) {
    let who = Who::Client(n);
    let served = match seat.connected {
        // It has no reason to leave a replica that is cut off from the store, unless that one hears that it lags.
        Some((replica, _)) => {
            let mut others = (0..world.profile.replicas).filter(|m| *m != replica);
            let lags = others.any(|m| world.serves(m, Who::Replica(replica)));
            world.serves(replica, who) || (lags && world.is_served(who))
        }
        None => world.is_served(who),
    };
    if !served || seat.rejected {
        return;
    }
    let held = seat.held.addresses();
    for (address, (_, service, health)) in &stored.instances {
        let its_own = seat.held.flavor != Flavor::Grpc || seat.held.service == *service;
        let its_own = its_own && seat.held.flavor.is_told_of(*health);
        if its_own && !held.contains(address) {
            wrong.insert(Wrong::NotAtClient(n, address.clone()), LAG);
        }
    }
    for address in held {
        let there = stored.instances.get(&address);
        if !there.is_some_and(|(.., health)| seat.held.flavor.is_told_of(*health)) {
            wrong.insert(Wrong::StillAtClient(n, address), LAG);
        }
    }
}

// ---- when faults have ended ----

/// Everything is equal to everything.
pub(in crate::sim) fn converged(world: &World) {
    let stored = read(world);
    let have: BTreeMap<_, _> = stored
        .instances
        .iter()
        .map(|(address, (.., health))| (address, *health))
        .collect();
    let wanted = wanted(world);
    let want: BTreeMap<_, _> = wanted
        .iter()
        .map(|(address, (_, health))| (address, *health))
        .collect();
    if have != want {
        world.broken(
            "I3 convergence",
            format_args!("the store has {have:?}, the nodes {want:?}"),
        );
    }
    let mut versions: BTreeMap<(bool, Kind, String), String> = BTreeMap::new();
    for (n, seat) in lock(&world.seats).iter() {
        if seat.connected.is_none() {
            world.broken("I3 convergence", format_args!("c{n} is not connected"));
        }
        for fault in differs(&seat.held, &stored) {
            world.broken("I3 convergence", format_args!("c{n}: {fault}"));
        }
        let proxy = seat.held.flavor.is_proxy();
        let delta = proxy || seat.held.flavor == Flavor::EnvoyDelta;
        for (kind, names) in seat.held.versions.iter().filter(|_| delta) {
            for (name, version) in names {
                let key = (proxy && *kind == Kind::Endpoint, *kind, name.clone());
                let first = versions.entry(key).or_insert_with(|| version.clone());
                if *first != *version && name != "heddle/outbound" {
                    world.broken(
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
    same_views(world, stored.revision);
    paths_are_owned(world, &stored);
    let cluster = lock(&world.store);
    let all = cluster
        .machine
        .range("", None, true)
        .map(|it| it.items)
        .unwrap_or_default();
    let used: BTreeSet<_> = all.iter().filter_map(|item| item.lease).collect();
    let (used, kept) = (used.len(), cluster.machine.leases().len());
    drop(cluster);
    // Of a grant whose answer was lost nobody knows: its lease runs out by itself, an event's only in an hour.
    let lost = world.profile.replicas;
    if kept > used + lost && world.profile.lossy == 0 {
        world.broken(
            "leases",
            format_args!("{kept} leases live, {used} have keys"),
        );
    }
}

fn same_views(world: &World, revision: Revision) {
    let replicas = lock(&world.replicas);
    let mut first = None;
    for (n, replica) in replicas.iter() {
        let view = replica.registry.read(Clone::clone);
        if view.revision() != revision {
            world.broken(
                "I3 convergence",
                format_args!(
                    "r{n} is at revision {}, the store at {revision}",
                    view.revision()
                ),
            );
        }
        let first = first.get_or_insert_with(|| view.clone());
        if *first != view {
            world.broken(
                "I3 convergence",
                format_args!("the view of r{n} differs from another's"),
            );
        }
    }
    if replicas.len() != world.profile.replicas {
        world.broken(
            "I3 convergence",
            format_args!("{} replicas serve", replicas.len()),
        );
    }
}

/// Each service with instances has its claim, those that are long gone have none, and the oldest claim owns the path that
/// all services want.
fn paths_are_owned(world: &World, stored: &Stored) {
    let services = stored
        .instances
        .values()
        .map(|(_, service, _)| service.clone());
    let lived_in: BTreeSet<String> = services.collect();
    let prefix = format!("claim/proto/default/{SHARED}/");
    let claims = lock(&world.store).machine.range(&prefix, None, false);
    let claims = claims.map(|it| it.items).unwrap_or_default();
    let name = |key: &str| format!("{}.default", key.trim_start_matches(&prefix));
    let claimed: BTreeSet<String> = claims.iter().map(|item| name(&item.key)).collect();
    if claimed != lived_in {
        world.broken(
            "I8 paths",
            format_args!("{claimed:?} claim a path, and {lived_in:?} have instances"),
        );
    }
    let oldest = claims.iter().min_by_key(|item| item.create_revision);
    let oldest = oldest.map(|item| name(&item.key));
    for (n, replica) in lock(&world.replicas).iter() {
        let owner = replica
            .registry
            .read(|view| match view.path_owner(SHARED, "default") {
                Owner::One { owner, .. } => Some(owner.to_string()),
                Owner::Nobody | Owner::Unclear(_) => None,
            });
        // Without instances none of them has a claim any longer, and any may say that it has none.
        if oldest.is_some() && owner != oldest {
            world.broken(
                "I8 paths",
                format_args!("by r{n} {owner:?} owns a path, the oldest claim is of {oldest:?}"),
            );
        }
    }
}

fn differs(held: &Held, stored: &Stored) -> Vec<String> {
    let mut faults = Vec::new();
    let services: BTreeSet<String> = if held.flavor == Flavor::Grpc {
        stored
            .services
            .iter()
            .filter(|service| **service == held.service)
            .cloned()
            .collect()
    } else {
        stored.services.clone()
    };
    let mut kinds = vec![Kind::Cluster, Kind::Endpoint];
    if held.flavor.is_proxy() {
        kinds.push(Kind::ServiceIndex);
    }
    for kind in kinds {
        let names = held.names(kind);
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
            .filter(|(_, (_, of, health))| of == service && held.flavor.is_told_of(*health));
        let want: BTreeMap<String, i32> = of_it
            .map(|(address, (.., health))| (address.clone(), *health))
            .collect();
        let have = held.endpoints.get(service).cloned().unwrap_or_default();
        if have != want {
            faults.push(format!("{service} is {have:?}, the store has {want:?}"));
        }
    }
    faults
}
