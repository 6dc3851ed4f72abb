//! Which events to delete when there are too many. Those who cause many lose their own oldest first, so that a service
//! that restarts all the time does not displace what happened to nodes and replicas. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::registry::{core::instance_events, model::Event};

/// What the events of a kind count against: all kinds of instances together, every other kind by itself.
fn class(event: &Event) -> &str {
    match event.record.kind.as_str() {
        kind if instance_events::KINDS.contains(&kind) => "instance",
        kind => kind,
    }
}

/// Who causes an event: its service, else its node, else its kind.
fn subject(event: &Event) -> (&'static str, &str) {
    let record = &event.record;
    match (record.service.as_str(), record.node.as_str()) {
        ("", "") => ("kind", &record.kind),
        ("", node) => ("node", node),
        (service, _) => ("service", service),
    }
}

/// The events to delete, given all of them, oldest first: no class may have more than half of `at_most`, and all together not more
/// than `at_most`. Each time the subject with the most events loses its oldest. `more` are deleted in addition once there are too many, so that not every new
/// event costs a transaction; the result has at most `limit`.
pub(super) fn to_delete<'e>(
    events: &[&'e Arc<Event>],
    at_most: usize,
    more: usize,
    limit: usize,
) -> Vec<&'e Arc<Event>> {
    let over = |len: usize, most: usize| match len.saturating_sub(most) {
        0 => 0,
        too_many => (too_many + more).min(limit),
    };
    let mut classes: BTreeMap<&str, Vec<&Arc<Event>>> = BTreeMap::new();
    for event in events {
        classes.entry(class(event)).or_default().push(event);
    }
    for of_class in classes.into_values() {
        let too_many = over(of_class.len(), at_most / 2);
        if too_many > 0 {
            return fewest_missed(&of_class, too_many);
        }
    }
    fewest_missed(events, over(events.len(), at_most))
}

/// So many events, each time the oldest of the subject that then has the most. Of several subjects with equally many, the one with the
/// oldest event loses it.
fn fewest_missed<'e>(events: &[&'e Arc<Event>], count: usize) -> Vec<&'e Arc<Event>> {
    let mut subjects: BTreeMap<_, VecDeque<(usize, &'e Arc<Event>)>> = BTreeMap::new();
    if count > 0 {
        for (place, &event) in events.iter().enumerate() {
            let of_subject = subjects.entry(subject(event)).or_default();
            of_subject.push_back((place, event));
        }
    }
    let mut chosen = Vec::new();
    for _ in 0..count {
        let most = subjects.values_mut().max_by_key(|of_subject| {
            let oldest = of_subject.front().map_or(usize::MAX, |(place, _)| *place);
            (of_subject.len(), std::cmp::Reverse(oldest))
        });
        match most.and_then(VecDeque::pop_front) {
            Some((_, event)) => chosen.push(event),
            None => break,
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use heddle_proto::store::v1::EventRecord;

    use super::*;

    fn event(n: usize, kind: &str, node: &str, service: &str) -> Arc<Event> {
        let record = EventRecord {
            kind: kind.to_owned(),
            node: node.to_owned(),
            service: service.to_owned(),
            ..EventRecord::default()
        };
        let id = format!("{n:06}").into();
        Arc::new(Event { id, record })
    }

    /// Deletes until nothing is to be deleted any more.
    fn trimmed(mut events: Vec<Arc<Event>>, at_most: usize) -> Vec<Arc<Event>> {
        loop {
            let all: Vec<_> = events.iter().collect();
            let gone: Vec<_> = to_delete(&all, at_most, 4, 8)
                .into_iter()
                .map(|event| Arc::clone(&event.id))
                .collect();
            if gone.is_empty() {
                return events;
            }
            assert!(gone.len() <= 8);
            events.retain(|event| !gone.contains(&event.id));
        }
    }

    fn count(events: &[Arc<Event>], of: impl Fn(&EventRecord) -> bool) -> usize {
        events.iter().filter(|event| of(&event.record)).count()
    }

    /// Issue 10, E1: a program that crashed 1,218 times in 90 s pushed out the events of nodes and replicas.
    #[test]
    fn a_service_that_churns_loses_its_own_oldest_events() {
        let mut events: Vec<_> = (0..20)
            .map(|n| event(n, "node-joined", &format!("n{n}"), ""))
            .collect();
        events.push(event(20, "duty-taken", "", ""));
        events.extend((21..31).map(|n| event(n, "instance-left", "a", "web.default")));
        let churns = |n| event(n, "instance-expired", "a", "users.default");
        events.extend((31..1249).map(churns));
        let kept = trimmed(events, 200);
        assert_eq!(count(&kept, |it| it.kind == "node-joined"), 20);
        assert_eq!(count(&kept, |it| it.kind == "duty-taken"), 1);
        assert_eq!(count(&kept, |it| it.service == "web.default"), 10);
        let of_users = count(&kept, |it| it.service == "users.default");
        assert!((80..=90).contains(&of_users), "{of_users}");
        assert_eq!(&*kept.last().unwrap().id, "001248", "its newest are kept");
    }

    #[test]
    fn one_node_or_one_kind_displaces_no_other() {
        let flaps = (0..500).map(|n| event(n, "node-returned", "flaps", ""));
        let nodes = (500..600).map(|n| event(n, "node-joined", &format!("n{n}"), ""));
        let replicas = (600..900).map(|n| event(n, "replica-joined", "", ""));
        let kept = trimmed(flaps.chain(nodes).chain(replicas).collect(), 400);
        assert_eq!(count(&kept, |it| it.kind == "node-joined"), 100);
        assert!(kept.len() <= 400 && kept.len() > 380, "{}", kept.len());
        assert!(count(&kept, |it| it.node == "flaps") > 100);
    }

    #[test]
    fn of_many_quiet_subjects_the_oldest_event_goes() {
        let events = (0..30).map(|n| event(n, "node-joined", &format!("n{n}"), ""));
        let kept = trimmed(events.collect(), 40);
        assert_eq!(&*kept.first().unwrap().id, "000014");
        assert_eq!(kept.len(), 16);
    }
}
