//! The invariant of removals: each instance that is removed without a request has exactly one event, with the cause
//! that its node gave, in the transaction that removes it; an instance that requested its removal has none.

use std::collections::BTreeMap;

use heddle_proto::store::v1::{EventRecord, InstanceRecord, NodeRecord};
use prost::Message as _;

use super::expected::address_of;
use crate::{
    sim::simulation::{Simulation, lock},
    store::{Changes, KeyValue, machine::Machine},
};

/// How an instance was removed at its node, by its address, which is never used again.
pub(in crate::sim) enum Went {
    Asked,
    Lost(String),
    /// Its name was registered again before all knew: the event is about the next instance, or there is none.
    BackAgain,
}

pub(in crate::sim) fn went(simulation: &Simulation, address: &str, how: Went) {
    lock(&simulation.invariants)
        .went
        .insert(address.to_owned(), how);
}

/// The cause if the node gives none.
const UNKNOWN: &str = "missing from its node's list when the session was reopened";

pub(super) fn on_changes(simulation: &Simulation, machine: &Machine, changes: &Changes) {
    let (mut reported, mut several) = reported(simulation, changes);
    for event in changes.events.iter() {
        let (Some(name), Some(before), None) = (
            event.key.strip_prefix("instance/"),
            &event.before,
            &event.now,
        ) else {
            continue;
        };
        let cause = reported.remove(name).or_else(|| {
            // One event about several instances of the service on the node.
            let of_service = name.rsplit_once('/').map(|(of_service, _)| of_service);
            let (left, cause) = several.get_mut(of_service.unwrap_or_default())?;
            *left = left.checked_sub(1)?;
            Some(cause.clone())
        });
        let node = name.split('/').next().unwrap_or_default();
        // The removals of a lapsed node are in the node's own event.
        let by_session = machine.get(&format!("alive/{node}")).is_some();
        let address = address_of(&before.value).unwrap_or_default();
        let invariants = lock(&simulation.invariants);
        let holds = match (invariants.went.get(&address), &cause) {
            // The node's present process may have another instance of that name, or none.
            _ if is_of_another(machine, node, before) => true,
            (Some(Went::BackAgain), _) => true,
            // A delayed Hello to another replica arrived last: its node opens another session.
            (_, Some(cause)) if cause.starts_with(UNKNOWN) => true,
            (Some(Went::Lost(why)), Some(cause)) => why == cause,
            (Some(Went::Asked), cause) => cause.is_none(),
            (None, Some(_)) => false,
            (Some(Went::Lost(_)) | None, None) => !by_session,
        };
        drop(invariants);
        if !holds {
            simulation.broken(
                "I9 removal events",
                format_args!("{name} at {address} goes, and the cause reported is {cause:?}"),
            );
        }
    }
    several.retain(|_, (left, _)| *left > 0);
    if !reported.is_empty() || !several.is_empty() {
        simulation.broken(
            "I9 removal events",
            format_args!("{reported:?} {several:?} are not removed"),
        );
    }
}

/// Whether another process of the node than the present one wrote it.
fn is_of_another(machine: &Machine, node: &str, instance: &KeyValue) -> bool {
    let written = InstanceRecord::decode(instance.value.clone()).unwrap_or_default();
    let held = machine.get(&format!("node/{node}"));
    let held = held.and_then(|held| NodeRecord::decode(held.value).ok());
    written.epoch != held.unwrap_or_default().epoch
}

/// Names of instances and causes, and of services on a node the number of their instances and the cause. An event that
/// is written again is equal.
fn reported(
    simulation: &Simulation,
    changes: &Changes,
) -> (BTreeMap<String, String>, BTreeMap<String, (usize, String)>) {
    let (mut reported, mut several) = (BTreeMap::new(), BTreeMap::new());
    for event in changes.events.iter() {
        let Some(now) = event
            .now
            .as_ref()
            .filter(|_| event.key.starts_with("event/"))
        else {
            continue;
        };
        if let Some(before) = &event.before {
            if before.value != now.value {
                simulation.broken("I9 removal events", format_args!("{} changes", event.key));
            }
            continue;
        }
        let record = EventRecord::decode(now.value.clone()).unwrap_or_default();
        if record.kind == "instance-expired" {
            let of_service = format!("{}/{}", record.node, record.service);
            if record.instance.is_empty() {
                let count = record.cause.split_once(" instances, ");
                let count = count.and_then(|(count, _)| count.parse().ok());
                let cause = record.cause.split_once(": ");
                let cause = cause.map(|(_, cause)| cause).unwrap_or_default();
                several.insert(of_service, (count.unwrap_or(0), cause.to_owned()));
            } else {
                reported.insert(format!("{of_service}/{}", record.instance), record.cause);
            }
        }
    }
    (reported, several)
}
