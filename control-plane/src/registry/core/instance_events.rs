//! Events of instances in normal operation: they join, leave when they asked to, become unhealthy and healthy again.
//! Changes that a session has written are collected for a moment, and changes of many instances become few events, so
//! that they cost no write of an instance and do not displace other events. Instances that are removed without having
//! asked are not handled here: their events are part of the transaction that removes them (`lease/batch`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use heddle_proto::registry::v1::Health;
use tokio::sync::Notify;

use super::{Registry, events::NewEvent};
use crate::{
    names::{InstanceKey, ServiceName},
    store::{MAX_TXN_OPS, Txn},
};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_secs(1);
/// More changes than so many are only counted.
const MAX_GATHERED: usize = 20_000;
/// Of more changes of one kind and service in one gathering there is one event.
const ONE_BY_ONE: usize = 5;
/// Events of one gathering at most; the rest is one more.
const MAX_EVENTS: usize = 50;
/// Nodes that are named in an event of several.
const NAMED_NODES: usize = 3;

/// The kinds of these events: of all events at most half may be of them.
pub(in crate::registry) const KINDS: [&str; 4] = [
    "instance-joined",
    "instance-left",
    "instance-unhealthy",
    "instance-healthy",
];

/// What an instance did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::registry) enum Change {
    Joined,
    Left,
    Unhealthy,
    Healthy,
}

impl Change {
    fn kind(self) -> &'static str {
        match self {
            Self::Joined => KINDS[0],
            Self::Left => KINDS[1],
            Self::Unhealthy => KINDS[2],
            Self::Healthy => KINDS[3],
        }
    }

    /// What the step from one health to another is; draining is on the way to `Left`.
    pub(in crate::registry) fn of(before: Option<Health>, now: Health) -> Option<Self> {
        match (before, now) {
            (None, _) => Some(Self::Joined),
            (Some(before), now) if before == now => None,
            (_, Health::Unhealthy) => Some(Self::Unhealthy),
            (Some(Health::Unhealthy), Health::Healthy) => Some(Self::Healthy),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Observed {
    change: Change,
    key: InstanceKey,
    cause: String,
}

/// What was written and is not told yet.
#[derive(Default)]
pub(in crate::registry) struct InstanceEvents {
    gathered: Mutex<Gathered>,
    arrived: Notify,
}

#[derive(Default)]
struct Gathered {
    /// In the order in which they happened.
    changes: Vec<Observed>,
    /// Over the bound.
    more: usize,
}

impl InstanceEvents {
    pub(in crate::registry) fn add(&self, change: Change, key: &InstanceKey, cause: String) {
        let mut gathered = self.lock();
        if gathered.changes.len() >= MAX_GATHERED {
            gathered.more += 1;
        } else {
            let key = key.clone();
            gathered.changes.push(Observed { change, key, cause });
        }
        self.arrived.notify_one();
    }

    fn take(&self) -> Gathered {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is gathered, for ever. While the store does not answer it is kept, and what comes gathers behind it.
pub(in crate::registry) async fn run(registry: Registry) {
    loop {
        registry.instance_events().arrived.notified().await;
        tokio::time::sleep(GATHER).await;
        let gathered = registry.instance_events().take();
        let events = summary(&gathered.changes, gathered.more);
        for events in events.chunks(MAX_TXN_OPS / 2) {
            // Under their names: written again after a lost answer they are the same events.
            let entries: Vec<_> = events.iter().map(|event| registry.entry(event)).collect();
            while let Err(error) = registry.txn_with_entries(Txn::default(), &entries).await {
                tracing::debug!(%error, "events of instances cannot be written yet");
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}

/// The events of one gathering.
fn summary(changes: &[Observed], more: usize) -> Vec<NewEvent> {
    let mut groups: BTreeMap<(Change, &ServiceName), Vec<&Observed>> = BTreeMap::new();
    for observed in collapsed(changes) {
        let group = groups
            .entry((observed.change, &observed.key.service))
            .or_default();
        group.push(observed);
    }
    let mut events = Vec::new();
    let mut left = more;
    for ((change, _), group) in groups {
        let room = MAX_EVENTS.saturating_sub(events.len());
        if group.len() <= ONE_BY_ONE.min(room) {
            let alone = |observed: &&Observed| {
                NewEvent::of_instance(change.kind(), &observed.key, &observed.cause)
            };
            events.extend(group.iter().map(alone));
        } else if room > 0 {
            events.extend(combined(change, &group));
        } else {
            left += group.len();
        }
    }
    if left > 0 {
        let cause = format!("{left} more instances joined, left or changed their health");
        events.push(NewEvent::of_mesh(KINDS[0], &cause));
    }
    events
}

/// What remains to be told: that an instance joined, that it left, and of one whose health went to and fro within one
/// gathering only how that ended.
fn collapsed(changes: &[Observed]) -> Vec<&Observed> {
    let mut last: BTreeMap<(&InstanceKey, Change), &Observed> = BTreeMap::new();
    for observed in changes {
        let what = match observed.change {
            Change::Joined | Change::Left => observed.change,
            Change::Unhealthy | Change::Healthy => Change::Healthy,
        };
        last.insert((&observed.key, what), observed);
    }
    last.into_values().collect()
}

fn combined(change: Change, group: &[&Observed]) -> Option<NewEvent> {
    let (first, last) = (group.first()?, group.last()?);
    let nodes: BTreeSet<&str> = group.iter().map(|observed| &*observed.key.node).collect();
    let named: Vec<&str> = nodes.iter().take(NAMED_NODES).copied().collect();
    let more = match nodes.len().saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let cause = format!(
        "{} instances, {} to {}, on {}{more}; the first: {}",
        group.len(),
        first.key.id,
        last.key.id,
        named.join(", "),
        first.cause
    );
    let kind = change.kind();
    Some(match nodes.len() {
        1 => NewEvent::of_instances(kind, &first.key, &cause),
        _ => NewEvent::of_service(kind, &first.key.service.to_string(), &cause),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(change: Change, path: &str, cause: &str) -> Observed {
        let mut parts = path.split('/');
        let mut next = || parts.next().unwrap();
        Observed {
            change,
            key: InstanceKey {
                node: next().into(),
                service: ServiceName::parse(next()).unwrap(),
                id: next().into(),
            },
            cause: cause.to_owned(),
        }
    }

    #[test]
    fn a_few_are_told_one_by_one_and_many_together() {
        let mut changes = vec![one(Change::Left, "a/web/w1", "it asked to leave")];
        changes.extend((0..7).map(|n| one(Change::Joined, &format!("n{n}/users/u{n}"), "v1")));
        let told: Vec<_> = summary(&changes, 0).iter().map(NewEvent::said).collect();
        let many = "7 instances, u0 to u6, on n0, n1, n2 and 4 more; the first: v1";
        assert_eq!(
            told,
            [
                ("instance-joined", many.to_owned()),
                ("instance-left", "it asked to leave".to_owned()),
            ]
        );
    }

    #[test]
    fn one_that_joins_and_leaves_at_once_did_both() {
        let both = [Change::Joined, Change::Left];
        let changes = both.map(|change| one(change, "a/users/u1", ""));
        let told = summary(&changes, 0);
        let kinds: Vec<_> = told.iter().map(|event| event.said().0).collect();
        assert_eq!(kinds, ["instance-joined", "instance-left"]);
    }

    #[test]
    fn one_that_flaps_is_told_as_it_ended() {
        let flaps = [Change::Unhealthy, Change::Healthy, Change::Unhealthy];
        let changes = flaps.map(|change| one(change, "a/users/u1", "refused"));
        let told: Vec<_> = summary(&changes, 0).iter().map(NewEvent::said).collect();
        assert_eq!(told, [("instance-unhealthy", "refused".to_owned())]);
    }

    #[test]
    fn a_gathering_has_a_bounded_number_of_events() {
        let changes: Vec<_> = (0..1000)
            .map(|n| one(Change::Healthy, &format!("a/s{n}/i"), "passes"))
            .collect();
        let events = summary(&changes, 3);
        assert_eq!(events.len(), MAX_EVENTS + 1);
        let (_, last) = events.last().unwrap().said();
        assert!(last.starts_with("953 more"), "{last}");
    }

    #[test]
    fn steps_of_health_that_matter_are_changes() {
        use Health::{Draining, Healthy, Unhealthy, Unknown};
        for (before, now, change) in [
            (None, Unhealthy, Some(Change::Joined)),
            (Some(Healthy), Healthy, None),
            (Some(Healthy), Unhealthy, Some(Change::Unhealthy)),
            (Some(Unhealthy), Healthy, Some(Change::Healthy)),
            (Some(Healthy), Draining, None),
            (Some(Unknown), Healthy, None),
        ] {
            assert_eq!(Change::of(before, now), change, "{before:?} to {now:?}");
        }
    }
}
