use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{batch::transactions, *};
use crate::{
    registry::{
        core::events::EventEntry,
        fixture::{Fixture, identity, instance, names, service, within},
        model::{KnownService, NodeIdentity},
        view::View,
    },
    store::{MAX_TXN_BYTES, MAX_TXN_OPS},
};

#[tokio::test]
async fn a_full_set_replaces_and_a_resumed_session_is_no_change_for_anybody() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut lease = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    let set = vec![
        instance("a", "users/u1"),
        instance("a", "users/u2"),
        instance("a", "shop/s1"),
    ];
    let revision = lease.replace_all(set.clone()).await.unwrap();
    registry.reached(revision).await;
    assert_eq!(
        registry.read(names),
        [
            "a/shop.default/s1",
            "a/users.default/u1",
            "a/users.default/u2"
        ]
    );

    let mut changes = registry.subscribe();
    let mut again = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    assert_eq!(again.epoch(), lease.epoch());
    let resumed = again.replace_all(set.clone()).await.unwrap();
    assert_eq!(resumed, again.session(), "nothing is written but the lease");
    registry.reached(resumed).await;
    let batch = within(changes.next()).await;
    assert_eq!(batch.services, BTreeSet::new(), "no flap");
    assert!(registry.read(|view| view.node("a").unwrap().alive));

    let restarted = NodeLease::claim(registry, &identity("a", "p2"))
        .await
        .unwrap();
    assert_eq!(restarted.epoch(), lease.epoch() + 1);
    let mut restarted = restarted;
    let revision = restarted.replace_all(set[1..].to_vec()).await.unwrap();
    registry.reached(revision).await;
    let batch = within(changes.next()).await;
    assert_eq!(
        batch.services,
        BTreeSet::from([service("users")]),
        "only what differs"
    );
    assert_eq!(
        registry.read(names),
        ["a/shop.default/s1", "a/users.default/u2"]
    );
}

#[tokio::test]
async fn a_process_that_lost_the_node_cannot_write_and_gets_the_reason() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut old = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    old.replace_all(vec![instance("a", "users/u1")])
        .await
        .unwrap();
    let mut new = NodeLease::claim(registry, &identity("a", "p2"))
        .await
        .unwrap();
    let superseded = LeaseError::Superseded {
        node: "a".into(),
        process_id: "p2".into(),
        epoch: 2,
    };
    let (key, local) = instance("a", "users/u2");
    let write = vec![NodeWrite::Put(key, Box::new(local))];
    assert_eq!(old.change(write.clone()).await.unwrap_err(), superseded);
    assert_eq!(old.beat().await.unwrap_err(), superseded);
    assert_eq!(old.replace_all(vec![]).await.unwrap_err(), superseded);
    let back = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .err()
        .unwrap();
    assert_eq!(
        back, superseded,
        "it does not take the node back while the other lives"
    );
    assert!(back.to_string().contains("--node"), "{back}");

    let mut same = NodeLease::claim(registry, &identity("a", "p2"))
        .await
        .unwrap();
    let replaced = LeaseError::Replaced { node: "a".into() };
    assert_eq!(new.change(write.clone()).await.unwrap_err(), replaced);
    assert_eq!(new.beat().await.unwrap_err(), replaced);
    same.change(write.clone()).await.unwrap();
    same.beat().await.unwrap();

    let revision = same.leave().await.unwrap();
    registry.reached(revision).await;
    assert_eq!(registry.read(names), [""; 0]);
    let lapsed = LeaseError::Lapsed { node: "a".into() };
    assert_eq!(same.change(write).await.unwrap_err(), lapsed);
    let returned = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    assert_eq!(returned.epoch(), 3, "its successor has gone");
}

#[tokio::test]
async fn a_hello_that_was_held_up_takes_nothing_from_the_one_that_came_after_it() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let hello = |process: &str, attempt| NodeIdentity {
        attempt,
        ..identity("a", process)
    };
    let mut now = NodeLease::claim(registry, &hello("p1", 2)).await.unwrap();
    let revision = now.replace_all(vec![instance("a", "users/u1")]).await;
    registry.reached(revision.unwrap()).await;
    let late = NodeLease::claim(registry, &hello("p1", 1)).await;
    let replaced = LeaseError::Replaced { node: "a".into() };
    assert_eq!(late.err(), Some(replaced));
    now.beat().await.unwrap();
    assert_eq!(registry.read(names), ["a/users.default/u1"]);

    // A later attempt, one without a number, and one of another process are not older attempts.
    for (process, attempt) in [("p1", 3), ("p1", 0), ("p2", 1)] {
        NodeLease::claim(registry, &hello(process, attempt))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_processes_with_one_name_one_holds_it_and_nothing_leaks() {
    let fixture = Fixture::new().await;
    let leases = fixture.registry.store().counters().leases;
    let claims: Vec<_> = (0..6)
        .map(|n| {
            let registry = fixture.registry.clone();
            tokio::spawn(async move {
                let process = format!("p{n}");
                let (key, local) = instance("a", &format!("users/u{n}"));
                match NodeLease::claim(&registry, &identity("a", &process)).await {
                    Ok(mut lease) => lease.replace_all(vec![(key, local)]).await.map(|_| process),
                    Err(error) => Err(error),
                }
            })
        })
        .collect();
    for claim in claims {
        let _ = claim.await.unwrap();
    }
    let store = fixture.registry.store();
    let newest = store.range("", None).await.unwrap().revision;
    fixture.registry.reached(newest).await;
    let holder = fixture
        .registry
        .read(|view| view.node("a").unwrap().clone());
    assert!(holder.alive && holder.epoch <= 6);
    let instances = fixture.registry.read(names);
    assert!(
        instances.len() <= 1,
        "no mixture of two processes: {instances:?}"
    );
    let used = store.counters().leases - leases;
    assert_eq!(used, 1, "the unused ones are revoked");
}

#[tokio::test]
async fn more_instances_than_a_transaction_holds() {
    let fixture = Fixture::new().await;
    let mut lease = NodeLease::claim(&fixture.registry, &identity("a", "p1"))
        .await
        .unwrap();
    let set: Vec<_> = (0..500)
        .map(|n| instance("a", &format!("users/u{n}")))
        .collect();
    let revision = lease.replace_all(set).await.unwrap();
    fixture.registry.reached(revision).await;
    assert_eq!(fixture.registry.read(View::instance_count), 500);
    let removals =
        (0..400).map(|n| NodeWrite::Remove(instance("a", &format!("users/u{n}")).0, None));
    let revision = lease.change(removals.collect()).await.unwrap();
    fixture.registry.reached(revision).await;
    assert_eq!(fixture.registry.read(View::instance_count), 100);
}

#[tokio::test]
async fn a_node_that_falls_silent_is_removed_and_one_that_beats_stays() {
    let fixture = Fixture::with_ttl(Duration::from_secs(2)).await;
    let registry = &fixture.registry;
    let mut silent = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    silent
        .replace_all(vec![instance("a", "users/u1")])
        .await
        .unwrap();
    let mut beating = NodeLease::claim(registry, &identity("b", "p1"))
        .await
        .unwrap();
    let revision = beating
        .replace_all(vec![instance("b", "users/u1")])
        .await
        .unwrap();
    registry.reached(revision).await;
    let beats = async {
        loop {
            beating.beat().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = fixture.until(|view| names(view) == ["b/users.default/u1"]) => {}
        () = beats => {}
    }
    let lapsed = silent.beat().await.unwrap_err();
    assert_eq!(lapsed, LeaseError::Lapsed { node: "a".into() });
    registry.read(|view| {
        assert!(!view.node("a").unwrap().alive);
        assert!(!view.node("a").unwrap().suspect);
    });
}

#[tokio::test]
async fn nodes_that_fall_silent_together_are_suspect_and_clear_when_they_return() {
    // Long enough that they lapse together even if the machine stalls.
    let fixture = Fixture::with_ttl(Duration::from_secs(5)).await;
    let registry = &fixture.registry;
    for node in ["a", "b", "c"] {
        let mut lease = NodeLease::claim(registry, &identity(node, "p1"))
            .await
            .unwrap();
        lease
            .replace_all(vec![instance(node, "users/u1")])
            .await
            .unwrap();
    }
    fixture
        .until(|view| view.nodes().filter(|node| node.suspect).count() == 3)
        .await;
    assert_eq!(registry.read(names).len(), 3, "they stay in use");
    let mut back = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    let revision = back
        .replace_all(vec![instance("a", "users/u1")])
        .await
        .unwrap();
    registry.reached(revision).await;
    assert!(registry.read(|view| !view.node("a").unwrap().suspect));
}

#[tokio::test]
async fn a_restart_of_the_control_plane_takes_nobody_out() {
    let ttl = Duration::from_secs(2);
    let fixture = Fixture::with_ttl(ttl).await;
    let mut lease = NodeLease::claim(&fixture.registry, &identity("a", "p1"))
        .await
        .unwrap();
    let set = vec![instance("a", "users/u1")];
    lease.replace_all(set.clone()).await.unwrap();
    let epoch = lease.epoch();
    drop(lease);
    let folder = fixture.close().await;
    std::thread::sleep(ttl + ttl / 10); // longer than the lease: time itself is what is tested

    let fixture = Fixture::open(folder, ttl).await;
    assert_eq!(
        fixture.registry.read(names),
        ["a/users.default/u1"],
        "loaded when it opens"
    );
    let mut changes = fixture.registry.subscribe();
    let who = NodeIdentity {
        epoch,
        ..identity("a", "p1")
    };
    let mut lease = NodeLease::claim(&fixture.registry, &who).await.unwrap();
    assert_eq!(lease.epoch(), epoch);
    let revision = lease.replace_all(set).await.unwrap();
    fixture.registry.reached(revision).await;
    assert_eq!(
        within(changes.next()).await.services,
        BTreeSet::new(),
        "no flap"
    );
    // A node that does not return within its TTL is removed.
    drop(lease);
    fixture.until(|view| names(view).is_empty()).await;
}

#[tokio::test]
async fn a_reader_that_lost_the_watch_catches_up() {
    let folder = tempfile::tempdir().unwrap();
    let options = crate::store::EmbeddedOptions {
        max_history: Some(4),
        ..crate::store::EmbeddedOptions::new(folder.path().join("control.redb"))
    };
    let store = Arc::new(crate::store::Embedded::open(&options).unwrap());
    let registry = Registry::open(store, crate::registry::options::RegistryOptions::default())
        .await
        .unwrap()
        .registry()
        .clone();
    let mut changes = registry.subscribe();
    let mut lease = NodeLease::claim(&registry, &identity("a", "p1"))
        .await
        .unwrap();
    // Single-threaded: the registry's task runs only while this one waits, so many revisions arrive at once.
    let set = (0..128 * 12)
        .map(|n| instance("a", &format!("users/u{n}")))
        .collect();
    let revision = lease.replace_all(set).await.unwrap();
    within(registry.reached(revision)).await;
    assert_eq!(registry.read(View::instance_count), 128 * 12);
    let mut services = BTreeSet::new();
    while !services.contains(&service("users")) {
        services.extend(within(changes.next()).await.services);
    }
}

#[tokio::test]
async fn a_slow_store_costs_no_node_its_lease() {
    let ttl = Duration::from_secs(1);
    let (fixture, store) = Fixture::gated(ttl).await;
    let registry = &fixture.registry;
    let mut lease = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    store.shut();
    let stall = async {
        tokio::time::sleep(ttl * 3).await; // longer than the lease: time itself is what is tested
        store.open();
    };
    let write = lease.replace_all(vec![instance("a", "users/u1")]);
    let (revision, ()) = tokio::join!(write, stall);
    registry.reached(revision.unwrap()).await;
    assert_eq!(registry.read(names), ["a/users.default/u1"]);
}

/// The operations of writes without events.
fn ops_of(writes: Vec<Write>) -> Vec<Vec<Op>> {
    let none = |_: &NewEvent| unreachable!("no event is expected");
    let transactions = transactions(writes, none).into_iter();
    transactions.map(|transaction| transaction.ops).collect()
}

#[test]
fn what_does_not_go_into_one_transaction_has_each_record_once() {
    let write = |n: usize, service_name: &str| {
        let (key, local) = instance("a", &format!("{service_name}/{n}"));
        Write {
            record: Some((key.service.clone(), KnownService::of_local(&local))),
            ..Write::of(Op::put(&keys::instance(&key), local.encode_to_vec()))
        }
    };
    let services = ["users", "shop", "cart"];
    let writes = (0..300).map(|n| write(n, services[n % 3])).collect();
    let transactions = ops_of(writes);
    assert!(transactions.iter().all(|ops| ops.len() <= MAX_TXN_OPS));
    let keys = |ops: &Vec<Op>| ops.iter().map(|op| op.key().to_string()).collect();
    let first: Vec<String> = keys(&transactions[0]);
    assert_eq!(
        first
            .iter()
            .filter(|key| key.starts_with("service/"))
            .count(),
        3
    );
    let all: usize = transactions.iter().map(Vec::len).sum();
    assert_eq!(all, 303);
}

#[test]
fn what_is_large_goes_in_several_transactions() {
    let write = |n: usize| {
        let (key, mut local) = instance("a", &format!("users/{n}"));
        local.health_reason = "x".repeat(MAX_TXN_BYTES / 3);
        Write {
            record: Some((key.service.clone(), KnownService::of_local(&local))),
            ..Write::of(Op::put(&keys::instance(&key), local.encode_to_vec()))
        }
    };
    let transactions = ops_of((0..10).map(write).collect());
    assert_eq!(transactions.len(), 5, "two in each");
    for ops in &transactions {
        let bytes: usize = ops.iter().map(Op::value_bytes).sum();
        assert!(bytes <= MAX_TXN_BYTES, "{bytes}");
    }
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_does_not_come_after_a_newer_one() {
    let (fixture, store) = Fixture::gated(Duration::from_secs(600)).await;
    let registry = &fixture.registry;
    let mut lease = NodeLease::claim(registry, &identity("a", "p1"))
        .await
        .unwrap();
    let first = lease.session();
    store.lose_next();
    let (key, local) = instance("a", "users/u1");
    let put = NodeWrite::Put(key.clone(), Box::new(local));
    within(lease.change(vec![put])).await.unwrap();
    assert_ne!(lease.session(), first, "the fence is a new one");
    let shown = registry.read(|view| view.node("a").map(|node| node.session));
    assert_eq!(
        shown,
        Some(lease.session()),
        "and the session is the node's"
    );

    lease
        .change(vec![NodeWrite::Remove(key, None)])
        .await
        .unwrap();
    let late = store.arrive().await;
    assert!(!late.succeeded, "the lost write came after the removal");
    registry.reached(late.revision).await;
    assert!(registry.read(names).is_empty());
    lease.beat().await.unwrap();
}

#[test]
fn the_events_of_what_goes_fit_into_its_transaction() {
    let count = std::cell::Cell::new(0);
    let entry = |event: &NewEvent| {
        count.set(count.get() + 1);
        EventEntry::named(&format!("event/{}", count.get()), event.kind_and_cause().1)
    };
    for (removals, cause) in [(100, 10), (100, 1000), (300, 1000)] {
        let delete = |n: usize| {
            let (key, _) = instance("a", &format!("users/{n}"));
            // A character of four bytes. 300 of these writes have three different causes.
            let cause = "𝄞".repeat(cause - n % 3);
            Write::delete(&key, Some(cause))
        };
        let put = |n: usize| {
            let (key, mut local) = instance("a", &format!("cart/{n}"));
            local.health_reason = "x".repeat(MAX_TXN_BYTES / 100);
            Write::of(Op::put(&keys::instance(&key), local.encode_to_vec()))
        };
        let writes = (0..removals).map(delete).chain((0..100).map(put)).collect();
        for transaction in transactions(writes, entry) {
            let ops = transaction.ops.len() + transaction.entries.len();
            assert!(ops <= MAX_TXN_OPS, "{ops}");
            let bytes: usize = transaction.ops.iter().map(Op::value_bytes).sum();
            let reported: usize = transaction.entries.iter().map(EventEntry::bytes).sum();
            assert!(bytes + reported <= MAX_TXN_BYTES, "{bytes} and {reported}");
        }
    }
}
