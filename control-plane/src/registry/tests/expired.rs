//! Events of instances that are removed without having requested it.

use std::time::Duration;

use heddle_proto::store::v1::EventRecord;
use prost::Message as _;

use crate::{
    names::{InstanceKey, keys},
    registry::{
        core::events::MAX_EVENTS,
        fixture::{Fixture, identity, instance, names, within},
        lease::{NodeLease, NodeWrite, RemovalCauses},
    },
    store::KeyValue,
};

const BROKE: &str = "its keep-alive stream broke";

fn key(name: &str) -> InstanceKey {
    instance("a", name).0
}

async fn node(fixture: &Fixture, process: &str, has: &[String]) -> NodeLease {
    let mut lease = NodeLease::claim(&fixture.registry, &identity("a", process))
        .await
        .unwrap();
    let set = has.iter().map(|name| instance("a", name)).collect();
    lease.replace_all(set).await.unwrap();
    lease
}

/// The `instance-expired` events in the store, oldest first.
async fn expired(fixture: &Fixture) -> Vec<(KeyValue, EventRecord)> {
    let store = fixture.registry.store();
    let found = store.range(keys::EVENTS, None).await.unwrap().items;
    let events = found.into_iter().map(|item| {
        let record = EventRecord::decode(item.value.clone()).unwrap();
        (item, record)
    });
    events
        .filter(|(_, record)| record.kind == "instance-expired")
        .collect()
}

/// "service/instance: cause" of each event.
async fn kind_and_cause(fixture: &Fixture) -> Vec<String> {
    let expired = expired(fixture).await;
    let line = |it: &EventRecord| format!("{}/{}: {}", it.service, it.instance, it.cause);
    let mut lines: Vec<_> = expired.iter().map(|(_, record)| line(record)).collect();
    lines.sort();
    lines
}

fn some(service: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{service}/i{n}")).collect()
}

#[tokio::test]
async fn an_expired_instance_has_an_event_in_the_same_transaction_and_a_deregistered_one_has_none()
{
    let fixture = Fixture::new().await;
    let mut lease = node(&fixture, "p1", &some("users", 3)).await;
    let removals = vec![
        NodeWrite::Remove(key("users/i0"), Some(BROKE.into())),
        NodeWrite::Remove(key("users/i1"), None),
    ];
    let revision = lease.change(removals).await.unwrap();
    fixture.registry.reached(revision).await;
    assert_eq!(fixture.registry.read(names), ["a/users.default/i2"]);
    let events = expired(&fixture).await;
    let [(item, record)] = &*events else {
        panic!("{events:?}");
    };
    assert_eq!(item.mod_revision, revision);
    let fields = [
        &record.node,
        &record.service,
        &record.instance,
        &record.cause,
    ];
    assert_eq!(fields, ["a", "users.default", "i0", BROKE]);

    // The whole node leaves: that has its own event.
    lease.leave().await.unwrap();
    assert_eq!(expired(&fixture).await.len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_event() {
    let (fixture, store) = Fixture::gated(Duration::from_secs(600)).await;
    let mut lease = node(&fixture, "p1", &some("users", 2)).await;
    for (name, done) in [("users/i0", true), ("users/i1", false)] {
        if done {
            store.lose_next_answer();
        } else {
            store.lose_next();
        }
        let removal = NodeWrite::Remove(key(name), Some(BROKE.into()));
        within(lease.change(vec![removal])).await.unwrap();
    }
    let twice = ["i0", "i1"].map(|id| format!("users.default/{id}: {BROKE}"));
    assert_eq!(kind_and_cause(&fixture).await, twice);
}

#[tokio::test]
async fn a_resumed_session_records_known_causes_and_names_unknown_ones() {
    let fixture = Fixture::new().await;
    drop(node(&fixture, "p1", &some("users", 4)).await);
    let mut lease = NodeLease::claim(&fixture.registry, &identity("a", "p1"))
        .await
        .unwrap();
    let gone = RemovalCauses::from([
        (key("users/i0"), Some(BROKE.to_owned())),
        (key("users/i1"), None),
        // Reported before with a lost answer: the instance does not exist any more.
        (key("users/i9"), Some(BROKE.to_owned())),
    ]);
    let left = vec![instance("a", "users/i3")];
    lease.resume(left.clone(), &gone).await.unwrap();
    let expected = [
        format!("users.default/i0: {BROKE}"),
        "users.default/i2: missing from its node's list when the session was reopened; the reason is unknown"
            .into(),
    ];
    assert_eq!(kind_and_cause(&fixture).await, expected);
    // Repeating it adds no event.
    lease.resume(left, &gone).await.unwrap();
    assert_eq!(kind_and_cause(&fixture).await.len(), 2);

    node(&fixture, "p2", &[]).await;
    let last = kind_and_cause(&fixture).await.pop().unwrap();
    let new = "users.default/i3: missing from the list of its node's new process p2 (epoch 2)";
    assert_eq!(last, new);
}

#[tokio::test]
async fn a_thousand_at_once_leave_room_in_the_log_and_none_is_left_out() {
    let fixture = Fixture::new().await;
    let all = [some("shop", 100), some("users", MAX_EVENTS + 500)].concat();
    let mut lease = node(&fixture, "p1", &all).await;
    let unasked = |name: &String| NodeWrite::Remove(key(name), Some(BROKE.into()));
    let (few, many) = all.split_at(100);
    // Issue 10, E1: eight that go with their file had eight events, while eight that come have one.
    lease
        .change(few[..8].iter().map(unasked).collect())
        .await
        .unwrap();
    let together = format!("shop.default/: 8 instances, i0 to i7: {BROKE}");
    assert_eq!(kind_and_cause(&fixture).await, [together]);
    for five in few[8..13].chunks(5) {
        lease
            .change(five.iter().map(unasked).collect())
            .await
            .unwrap();
    }
    assert_eq!(kind_and_cause(&fixture).await.len(), 6);
    lease
        .change(few[13..].iter().map(unasked).collect())
        .await
        .unwrap();
    let revision = lease
        .change(many.iter().map(unasked).collect())
        .await
        .unwrap();
    fixture.registry.reached(revision).await;
    assert!(fixture.registry.read(names).is_empty());

    let events = expired(&fixture).await;
    let (one, several): (Vec<_>, Vec<_>) = events
        .into_iter()
        .map(|(_, record)| record)
        .partition(|record| !record.instance.is_empty());
    assert_eq!(one.len(), 5);
    assert!(several.len() < 50, "{}", several.len());
    let count = |record: &EventRecord| {
        assert!(record.cause.ends_with(BROKE), "{}", record.cause);
        let (count, _) = record.cause.split_once(" instances, i").unwrap();
        count.parse::<usize>().unwrap()
    };
    assert_eq!(several.iter().map(count).sum::<usize>(), all.len() - 5);
    let joined = |view: &crate::registry::view::View| {
        view.events()
            .any(|event| event.record.kind == "node-joined")
    };
    assert!(
        fixture.registry.read(joined),
        "earlier events are still there"
    );
}
