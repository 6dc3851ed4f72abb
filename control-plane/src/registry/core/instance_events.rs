//! Events of instances in normal operation: they join, leave on request, become unhealthy or become healthy again. The
//! changes that a session has written are collected for a second and summarised in a few events, so that they add no
//! transaction to the write of an instance and do not displace other events. Instances that are removed without a
//! request are not handled here: their events are part of the transaction that removes them (`lease/batch`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use heddle_proto::{count, registry::v1::Health};
use tokio::sync::Notify;

use super::{Registry, events::NewEvent};
use crate::{
    names::{InstanceKey, ServiceName},
    store::{MAX_TXN_OPS, Txn},
};

/// How long changes are collected before they are written.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Changes beyond this number are only counted.
const MAX_BATCH: usize = 20_000;
/// If there are more changes than this of one kind and service at once, they share one event.
pub(in crate::registry) const MAX_SINGLE_EVENTS: usize = 5;
/// The most events per batch; one more event counts the rest.
const MAX_EVENTS: usize = 50;
/// The most nodes that a combined event names.
const NAMED_NODES: usize = 3;

/// The kinds of events of instances, of which those of this file come first. Together they may make up at most half of
/// all stored events.
pub(in crate::registry) const KINDS: [&str; 5] = [
    "instance-joined",
    "instance-left",
    "instance-unhealthy",
    "instance-healthy",
    "instance-expired",
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

    /// The change from one health to another; none if it needs no event. Draining needs none, because `Left` follows.
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

/// Changes that are written but have no event yet.
#[derive(Default)]
pub(in crate::registry) struct InstanceEvents {
    batch: Mutex<EventBatch>,
    arrived: Notify,
}

#[derive(Default)]
struct EventBatch {
    /// In the order in which they happened.
    changes: Vec<Observed>,
    /// Changes over the bound.
    more: usize,
}

impl InstanceEvents {
    pub(in crate::registry) fn add(&self, change: Change, key: &InstanceKey, cause: String) {
        let mut batch = self.lock();
        if batch.changes.len() >= MAX_BATCH {
            batch.more += 1;
        } else {
            let key = key.clone();
            batch.changes.push(Observed { change, key, cause });
        }
        self.arrived.notify_one();
    }

    fn take(&self) -> EventBatch {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, EventBatch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the events of collected changes, until the process ends. While the store does not answer, it retries them, and new changes
/// are collected meanwhile.
pub(in crate::registry) async fn run(registry: Registry) {
    loop {
        registry.instance_events().arrived.notified().await;
        tokio::time::sleep(BATCH_INTERVAL).await;
        let batch = registry.instance_events().take();
        let events = summary(&batch.changes, batch.more);
        for events in events.chunks(MAX_TXN_OPS / 2) {
            // Keys are assigned once: if an answer is lost, the retry writes the same events.
            let entries: Vec<_> = events.iter().map(|event| registry.entry(event)).collect();
            while let Err(error) = registry.txn_with_entries(Txn::default(), &entries).await {
                tracing::debug!(%error, "cannot write instance events; retrying");
                tokio::time::sleep(BATCH_INTERVAL).await;
            }
        }
    }
}

/// The events of one batch of changes.
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
        if group.len() <= MAX_SINGLE_EVENTS.min(room) {
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
        let left = count(left, "more instance");
        let cause = format!("{left} joined, left or changed their health");
        events.push(NewEvent::of_mesh(KINDS[0], &cause));
    }
    events
}

/// The changes that need an event: each instance that joined or left, and the last health of each instance whose health
/// changed several times.
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
    fn a_few_changes_have_an_event_each_and_many_share_one() {
        let mut changes = vec![one(Change::Left, "a/web/w1", "it deregistered")];
        changes.extend((0..7).map(|n| one(Change::Joined, &format!("n{n}/users/u{n}"), "v1")));
        let events: Vec<_> = summary(&changes, 0)
            .iter()
            .map(NewEvent::kind_and_cause)
            .collect();
        let many = "7 instances, u0 to u6, on n0, n1, n2 and 4 more; the first: v1";
        assert_eq!(
            events,
            [
                ("instance-joined", many.to_owned()),
                ("instance-left", "it deregistered".to_owned()),
            ]
        );
    }

    #[test]
    fn one_that_joins_and_leaves_at_once_did_both() {
        let both = [Change::Joined, Change::Left];
        let changes = both.map(|change| one(change, "a/users/u1", ""));
        let events = summary(&changes, 0);
        let kinds: Vec<_> = events
            .iter()
            .map(|event| event.kind_and_cause().0)
            .collect();
        assert_eq!(kinds, ["instance-joined", "instance-left"]);
    }

    #[test]
    fn one_that_flaps_is_reported_with_its_last_state() {
        let flaps = [Change::Unhealthy, Change::Healthy, Change::Unhealthy];
        let changes = flaps.map(|change| one(change, "a/users/u1", "refused"));
        let events: Vec<_> = summary(&changes, 0)
            .iter()
            .map(NewEvent::kind_and_cause)
            .collect();
        assert_eq!(events, [("instance-unhealthy", "refused".to_owned())]);
    }

    #[test]
    fn a_batch_has_a_bounded_number_of_events() {
        let changes: Vec<_> = (0..1000)
            .map(|n| one(Change::Healthy, &format!("a/s{n}/i"), "passes"))
            .collect();
        let events = summary(&changes, 3);
        assert_eq!(events.len(), MAX_EVENTS + 1);
        let (_, last) = events.last().unwrap().kind_and_cause();
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
