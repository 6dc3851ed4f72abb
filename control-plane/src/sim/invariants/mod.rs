//! The invariants that are checked after each event; `periodic` has those that are checked twice a second. The first
//! violation ends the run. The expected state comes from `expected`, never from the product.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use heddle_proto::store::v1::{AliveRecord, InstanceRecord, NodeRecord};
use prost::Message as _;

use super::{
    client::{ClientResources, Flavor, revision_of},
    simulation::{Simulation, Who, lock},
};
use crate::{
    names::InstanceKey,
    snapshot::Kind,
    store::{Changes, KeyValue, Revision, machine::Machine},
};

mod periodic;
mod removal_events;
mod expected;

pub(super) use expected::is_contested;
use expected::{Stored, address_of, is_running, rightful, wanted};
pub(super) use periodic::{check, converged};
pub(super) use removal_events::{Went, went};

/// Nodes count as lapsed together within this time: a TTL, and the delay of the decision while the store is down.
const TOGETHER: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Invariants {
    since: BTreeMap<periodic::Wrong, Duration>,
    lapsed: Vec<(Duration, String)>,
    /// Processes that have had their node's lease.
    holders: BTreeSet<String>,
    /// How often the leader's duty was taken.
    duties: u32,
    /// Since when each suspect is one, and how often the leader's duty had been taken by then.
    suspects: BTreeMap<String, (Duration, u32)>,
    /// The owner of each address that was ever used.
    owners: BTreeMap<String, String>,
    /// The revision at which each address left the store, for those that are not in it.
    left: BTreeMap<String, Revision>,
    /// How instances that a node no longer has were removed, by address.
    went: BTreeMap<String, Went>,
    read: Option<Stored>,
}

/// Checks the changes of one transaction before they are published.
pub(super) fn on_changes(
    simulation: &Simulation,
    by: Who,
    machine: &Machine,
    changes: Option<&Changes>,
) {
    let Some(changes) = changes else { return };
    removal_events::on_changes(simulation, machine, changes);
    for event in changes.events.iter() {
        let verb = if event.now.is_some() {
            "puts"
        } else {
            "deletes"
        };
        simulation.log(format_args!(
            "store: {}: {by} {verb} {}",
            changes.revision, event.key
        ));
        let parts: Vec<&str> = event.key.split('/').collect();
        match (parts.as_slice(), &event.before, &event.now) {
            (["alive", node], before, Some(now)) => {
                on_claim(simulation, node, before.as_ref(), now);
            }
            (["duty", ..], _, Some(_)) => lock(&simulation.invariants).duties += 1,
            (["node", node], Some(before), Some(now)) => {
                on_record(simulation, machine, node, before, now);
            }
            (["instance", node, ..], before, Some(now)) => {
                on_left(simulation, before.as_ref(), changes.revision);
                on_put(simulation, machine, node, now);
            }
            (["instance", ..], Some(before), None) => {
                on_left(simulation, Some(before), changes.revision);
                on_delete(simulation, before);
            }
            _ => {}
        }
    }
}

fn on_claim(simulation: &Simulation, node: &str, before: Option<&KeyValue>, now: &KeyValue) {
    let holder = |item: &KeyValue| {
        let record = AliveRecord::decode(item.value.clone()).unwrap_or_default();
        (record.process_id, record.attempt)
    };
    let (new, attempt) = holder(now);
    // A process that never had the lease looks like a new one.
    let known = !lock(&simulation.invariants).holders.insert(new.clone());
    let Some((old, last)) = before.map(holder) else {
        return;
    };
    if known && number(&new) < number(&old) {
        simulation.broken(
            "I5 old over new",
            format_args!("{new} takes {node} from its living successor {old}"),
        );
    }
    if new == old && attempt < last {
        simulation.broken(
            "I5 old over new",
            format_args!("Hello {attempt} of {new} takes {node} from its Hello {last}"),
        );
    }
}

fn on_record(
    simulation: &Simulation,
    machine: &Machine,
    node: &str,
    before: &KeyValue,
    now: &KeyValue,
) {
    let read = |item: &KeyValue| NodeRecord::decode(item.value.clone()).unwrap_or_default();
    let (old, new) = (read(before), read(now));
    let handed_on = old.process_id != new.process_id;
    if new.epoch < old.epoch || (handed_on && new.epoch == old.epoch) {
        simulation.broken(
            "I5 old over new",
            format_args!(
                "the epoch of {node} goes from {} to {}",
                old.epoch, new.epoch
            ),
        );
    }
    if new.suspect && !old.suspect {
        on_suspect(simulation, machine, node);
    }
}

fn on_put(simulation: &Simulation, machine: &Machine, node: &str, now: &KeyValue) {
    if let Some(address) = address_of(&now.value) {
        let name = now.key.trim_start_matches("instance/").to_owned();
        let mut invariants = lock(&simulation.invariants);
        invariants.left.remove(&address);
        invariants.owners.insert(address, name);
    }
    let epoch = InstanceRecord::decode(now.value.clone()).map_or(0, |it| it.epoch);
    let held = machine.get(&format!("node/{node}"));
    let held = held.and_then(|held| NodeRecord::decode(held.value).ok());
    let held = held.map_or(0, |held| held.epoch);
    if epoch != held {
        simulation.broken(
            "I5 old over new",
            format_args!(
                "{} is written with epoch {epoch}, {held} holds the node",
                now.key
            ),
        );
    }
}

fn on_left(simulation: &Simulation, before: Option<&KeyValue>, at: Revision) {
    if let Some(address) = before.and_then(|before| address_of(&before.value)) {
        lock(&simulation.invariants).left.insert(address, at);
    }
}

fn on_delete(simulation: &Simulation, before: &KeyValue) {
    if simulation.profile.gentle
        && let Some(address) = address_of(&before.value)
        && wanted(simulation).contains_key(&address)
    {
        simulation.broken(
            "I1 no flap",
            format_args!("{} is deleted and lives", before.key),
        );
    }
}

pub(super) fn on_lapsed(simulation: &Simulation, key: &str) {
    let Some(node) = key.strip_prefix("alive/") else {
        return;
    };
    lock(&simulation.invariants)
        .lapsed
        .push((simulation.now(), node.to_owned()));
    let lives =
        rightful(simulation).any(|(who, n)| format!("n{n}") == node && is_running(simulation, who));
    if simulation.profile.gentle && lives {
        simulation.broken(
            "I1 no flap",
            format_args!("the lease of {node} ran out and it lives"),
        );
    }
}

fn on_suspect(simulation: &Simulation, machine: &Machine, node: &str) {
    let now = simulation.now();
    let mut invariants = lock(&simulation.invariants);
    let duties = invariants.duties;
    invariants.suspects.insert(node.to_owned(), (now, duties));
    invariants.lapsed.retain(|(at, _)| now - *at <= TOGETHER);
    // A replica that starts finds nodes that lapsed before.
    let others = machine
        .range("node/", None, true)
        .map(|it| it.items)
        .unwrap_or_default();
    let others = others
        .iter()
        .filter_map(|item| item.key.strip_prefix("node/"));
    let gone = others.filter(|node| machine.get(&format!("alive/{node}")).is_none());
    let mut lapsed: BTreeSet<String> = gone.map(str::to_owned).collect();
    lapsed.extend(invariants.lapsed.iter().map(|(_, node)| node.clone()));
    if lapsed.len() < 3 {
        let count = lapsed.len();
        drop(invariants);
        simulation.broken(
            "suspects",
            format_args!("{node} is suspect, and {count} nodes lapsed with it"),
        );
    }
}

/// A client was sent a revision.
pub(super) fn on_revision(
    simulation: &Simulation,
    who: Who,
    resources: &mut ClientResources,
    kind: Kind,
    revision: u64,
) {
    let seen = match resources.flavor {
        // In node metadata: the newest revision that it saw.
        Flavor::Proxy | Flavor::Everything => resources.seen,
        // In `version_info`: what it accepted of this type.
        Flavor::Envoy | Flavor::Grpc => {
            let accepted = resources.accepted.get(&kind);
            accepted
                .and_then(|version| revision_of(version))
                .unwrap_or(0)
        }
        Flavor::EnvoyDelta => 0,
    };
    if revision < seen {
        simulation.broken(
            "I4 revisions",
            format_args!(
                "{who} saw revision {seen} and got revision {} of {revision}",
                kind.word()
            ),
        );
    }
    resources.seen = resources.seen.max(revision);
}

/// A client has applied a response.
pub(super) fn on_taken(
    simulation: &Simulation,
    who: Who,
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
) {
    if !simulation.profile.gentle {
        return;
    }
    let wanted = wanted(simulation);
    for address in before
        .difference(after)
        .filter(|address| wanted.contains_key(*address))
    {
        simulation.broken(
            "I1 no flap",
            format_args!("{who} got the removal of {address}, which lives"),
        );
    }
}

/// A replica reports that all its clients have acknowledged the removal at a revision.
pub(super) fn on_acknowledged(
    simulation: &Simulation,
    replica: usize,
    instance: &InstanceKey,
    revision: Revision,
    queried_at: Duration,
) {
    let living = wanted(simulation);
    let (owners, left) = {
        let invariants = lock(&simulation.invariants);
        (invariants.owners.clone(), invariants.left.clone())
    };
    let name = instance.to_string();
    // It may have been registered and removed again since then.
    let had_left = |address: &str| left.get(address).is_some_and(|at| *at <= revision);
    let gone = |address: &&String| {
        owners.get(*address) == Some(&name) && !living.contains_key(*address) && had_left(address)
    };
    // The current state: what was read for an earlier answer may lack what was registered again since.
    let stored = expected::read(simulation);
    for (n, state) in lock(&simulation.client_states).iter() {
        let here = state
            .connected
            .is_some_and(|(to, since)| to == replica && since < queried_at);
        let service = instance.service.to_string();
        let Some(endpoints) = state.resources.endpoints.get(&service) else {
            continue;
        };
        let has_endpoints = state.resources.answered.contains(&Kind::Endpoint) && !state.rejected;
        let here = here && !state.lost_there.is_cancelled();
        // It may have been registered again meanwhile: only what the store no longer has counts.
        for address in endpoints.keys().filter(gone) {
            if here && has_endpoints && !stored.instances.contains_key(address) {
                simulation.broken("I7 drain", format_args!(
                    "r{replica} reports that all have acknowledged the removal of {instance}; c{n} holds {address}"));
            }
        }
    }
}

/// The number of a node's process.
fn number(process_id: &str) -> u32 {
    let number = process_id.rsplit('-').next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
