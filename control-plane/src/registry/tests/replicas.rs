use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    names::keys,
    registry::{
        core::Registry,
        fixture::{Replicas, identity, instance, names, until, within},
        lease::{LeaseError, NodeLease},
        model::NodeIdentity,
        options::{ExpiryOptions, RegistryError, RegistryOptions},
        view::View,
    },
};

/// So long that no lease expires during a test.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);

fn leaders(registry: &Registry) -> Vec<String> {
    registry.read(|view| {
        let sweeps = |duties: &[std::sync::Arc<str>]| duties.iter().any(|it| &**it == "sweeper");
        view.replicas()
            .filter(|replica| sweeps(&replica.duties))
            .map(|replica| replica.name.to_string())
            .collect()
    })
}

async fn one_leader(registry: &Registry, name: &str) {
    until(registry, |_| leaders(registry) == [name]).await;
}

async fn claim(registry: &Registry, node: &str, process: &str) -> NodeLease {
    NodeLease::claim(registry, &identity(node, process))
        .await
        .unwrap()
}

#[tokio::test]
async fn replicas_know_each_other_and_one_takes_over_at_once_when_the_leader_stops() {
    let mesh = Replicas::new();
    let (member, _) = mesh.member(Replicas::options("c1", LONG)).await;
    let first = member.registry().clone();
    one_leader(&first, "c1").await;
    let (second, _) = mesh.join("c2", LONG).await;
    for registry in [&first, &second] {
        until(registry, |view| view.replicas().count() == 2).await;
        registry.read(|view| {
            let replica = view.replica("c2").unwrap();
            assert_eq!(replica.advertise, "http://c2:15010");
            assert_eq!(replica.version, env!("CARGO_PKG_VERSION"));
        });
    }
    assert_eq!(leaders(&second), ["c1"], "there is one");
    assert!(first.is_leader() && !second.is_leader());

    first.options().stop.cancel();
    within(member.left()).await;
    one_leader(&second, "c2").await;
    assert!(second.read(|view| view.replica("c1").is_none()));
}

#[tokio::test]
async fn when_the_leader_dies_another_takes_over_and_the_dead_one_cannot_sweep_later() {
    let mesh = Replicas::new();
    let (first, wire) = mesh.join("c1", SHORT).await;
    one_leader(&first, "c1").await;
    let (second, _) = mesh.join("c2", SHORT).await;
    let old = first.fencing_token().unwrap();
    wire.cut();
    one_leader(&second, "c2").await;
    let new = second.fencing_token().unwrap();
    assert_ne!(old, new);
    assert_eq!(
        first.fencing_token(),
        Some(old),
        "cut off, it does not know: what it writes fails by its condition"
    );
    let txn = crate::store::Txn {
        compare: vec![old.compare()],
        then: vec![crate::store::Op::put("swept", "by nobody")],
        ..crate::store::Txn::default()
    };
    assert!(!mesh.store().txn(txn).await.unwrap().succeeded);
    wire.mend();
    // It joins again, not as the leader.
    until(&first, |view| view.replicas().count() == 2).await;
    one_leader(&first, "c2").await;
    assert!(!first.is_leader());
}

#[tokio::test]
async fn a_name_that_another_replica_has_is_refused_and_one_that_was_killed_has_its_own_again() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", SHORT).await;
    let mut other = Replicas::options("c1", Duration::from_millis(300));
    other.advertise = "http://elsewhere:15010".to_owned();
    let error = mesh.try_join(other).await.err().unwrap();
    let taken = RegistryError::ReplicaTaken {
        name: "c1".into(),
        advertise: "http://c1:15010".into(),
    };
    assert_eq!(error, taken);
    let text = error.to_string();
    assert!(
        text.contains("--replica") && text.contains("http://c1:15010"),
        "{text}"
    );
    assert!(first.read(|view| view.replica("c1").is_some()));

    // No other process can serve at its address: the record in the store is that of a killed process.
    let again = within(mesh.try_join(Replicas::options("c1", LONG)))
        .await
        .unwrap();
    until(&again, |view| {
        let replica = view.replica("c1");
        replica.is_some_and(|it| it.process_id == again.options().process_id)
    })
    .await;
    one_leader(&again, "c1").await;
    assert!(!first.is_leader() || first.fencing_token() != again.fencing_token());
}

#[tokio::test]
async fn a_session_goes_on_at_another_replica_without_a_flap() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", LONG).await;
    let (second, _) = mesh.join("c2", LONG).await;
    let set = vec![instance("a", "users/u1"), instance("a", "shop/s1")];
    let mut here = claim(&first, "a", "p1").await;
    let revision = here.replace_all(set.clone()).await.unwrap();
    for registry in [&first, &second] {
        registry.reached(revision).await;
        assert_eq!(registry.read(names).len(), 2);
    }
    let mut changes = [first.subscribe(), second.subscribe()];
    let known = NodeIdentity {
        epoch: here.epoch(),
        ..identity("a", "p1")
    };
    let mut there = NodeLease::claim(&second, &known).await.unwrap();
    let resumed = there.replace_all(set.clone()).await.unwrap();
    assert_eq!(there.epoch(), here.epoch());
    for (registry, changes) in [&first, &second].into_iter().zip(&mut changes) {
        registry.reached(resumed).await;
        let batch = within(changes.next()).await;
        assert_eq!(batch.services, BTreeSet::new(), "no flap");
        registry.read(|view| {
            let node = view.node("a").unwrap();
            assert!(node.alive);
            assert_eq!(node.replica, "c2", "each knows where the session is");
        });
    }
    let replaced = LeaseError::Replaced { node: "a".into() };
    assert_eq!(here.beat().await.unwrap_err(), replaced);
    assert_eq!(here.replace_all(vec![]).await.unwrap_err(), replaced);
    assert_eq!(second.read(names).len(), 2);
}

#[tokio::test]
async fn an_old_process_overwrites_nothing_at_another_replica_and_the_clash_has_one_event() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", LONG).await;
    let (second, _) = mesh.join("c2", LONG).await;
    let mut old = claim(&first, "a", "p1").await;
    old.replace_all(vec![instance("a", "users/old")])
        .await
        .unwrap();
    let mut new = claim(&second, "a", "p2").await;
    let revision = new
        .replace_all(vec![instance("a", "users/new")])
        .await
        .unwrap();
    let superseded = LeaseError::Superseded {
        node: "a".into(),
        process_id: "p2".into(),
        epoch: 2,
    };
    assert_eq!(
        old.replace_all(vec![instance("a", "users/old")])
            .await
            .unwrap_err(),
        superseded
    );
    first.reached(revision).await;
    let mut changes = first.subscribe();
    let known = NodeIdentity {
        epoch: 1,
        ..identity("a", "p1")
    };
    for registry in [&first, &second, &first] {
        let refused = NodeLease::claim(registry, &known).await.err().unwrap();
        assert_eq!(refused, superseded);
    }
    until(&second, |view| view.node("a").unwrap().clash.is_some()).await;
    until(&first, |view| view.node("a").unwrap().clash.is_some()).await;
    second.read(|view| {
        let clash = view.node("a").unwrap().clash.clone().unwrap();
        assert_eq!((clash.process_id.as_str(), clash.epoch), ("p1", 1));
        assert_eq!(names(view), ["a/users.default/new"]);
        let of_clash = view.events().filter(|it| it.record.kind == "name-clash");
        let causes: Vec<_> = of_clash.map(|it| it.record.cause.clone()).collect();
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert!(
            causes[0].contains("p1") && causes[0].contains("p2"),
            "{causes:?}"
        );
    });
    let batch = within(changes.next()).await;
    assert_eq!(batch.services, BTreeSet::new(), "it does not flap");
    new.beat().await.unwrap();
    // The clash is on a lease: it ends when nobody claims the name any longer.
    let clash = mesh.store().get(&keys::clash("a")).await.unwrap().unwrap();
    mesh.store().revoke(clash.lease.unwrap()).await.unwrap();
    until(&first, |view| view.node("a").unwrap().clash.is_none()).await;
}

#[tokio::test]
async fn a_node_whose_session_is_elsewhere_is_late_only_if_its_replica_says_so_or_has_gone() {
    let mesh = Replicas::new();
    // So long that no node is late at first, even if the machine stalls.
    let ttl = SHORT * 3;
    let (member, _) = mesh.member(Replicas::options("c1", ttl)).await;
    let first = member.registry().clone();
    one_leader(&first, "c1").await;
    let (second, _) = mesh.join("c2", ttl).await;
    let mut leases = Vec::new();
    for node in ["a", "b", "c"] {
        let mut lease = claim(&second, node, "p1").await;
        let set = vec![instance(node, "users/u1")];
        let revision = lease.replace_all(set).await.unwrap();
        first.reached(revision).await;
        leases.push(lease);
    }
    assert_eq!(member.overdue_nodes(), 0, "nobody is late");
    // They stop sending: their replica notices a missed heartbeat long before their leases end.
    until(&first, |view| {
        view.replica("c2").is_some_and(|it| it.late_nodes == 3)
    })
    .await;
    assert_eq!(member.overdue_nodes(), 3);
    // So the first node that lapses is not expired before the others lapse.
    until(&first, |view| {
        view.nodes().filter(|node| node.suspect).count() == 3
    })
    .await;
    assert_eq!(first.read(names).len(), 3);
}

#[tokio::test]
async fn a_suspects_time_runs_on_under_the_next_leader() {
    let mesh = Replicas::new();
    let join = async |name| {
        let options = RegistryOptions {
            expiry: ExpiryOptions {
                suspect_for: SHORT * 10,
                ..ExpiryOptions::default()
            },
            ..Replicas::options(name, SHORT)
        };
        mesh.member(options).await.0
    };
    let member = join("c1").await;
    let first = member.registry().clone();
    one_leader(&first, "c1").await;
    let second = join("c2").await.registry().clone();
    for node in ["a", "b", "c"] {
        let mut lease = claim(&second, node, "p1").await;
        let set = vec![instance(node, "users/u1")];
        lease.replace_all(set).await.unwrap();
    }
    let noted = |view: &View| view.nodes().map(|node| node.suspect_for).min();
    until(&first, |view| noted(view) >= Some(SHORT)).await;
    first.options().stop.cancel();
    within(member.left()).await;
    one_leader(&second, "c2").await;
    let before = second.read(noted);
    let mut changes = second.subscribe();
    within(async {
        while second.read(noted) <= before {
            assert!(second.read(noted) >= before, "it is not counted anew");
            changes.next().await;
        }
    })
    .await;
    assert!(second.read(|view| view.nodes().all(|node| node.suspect)));
}

#[tokio::test]
async fn two_that_live_under_one_name_and_address_do_not_take_it_from_each_other_indefinitely() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", SHORT).await;
    let (second, _) = mesh.join("c1", SHORT).await;
    let holder = |view: &View| view.replica("c1").map(|it| it.process_id.clone());
    // The later one took the name. If the machine stalls, it may lose its lease and the other one may take the name.
    until(&first, |view| {
        holder(view).as_ref() == Some(&second.options().process_id)
    })
    .await;
    within(async { while !stays(&first, SHORT * 2, holder).await {} }).await;
    one_leader(&first, "c1").await;
    until(&first, |_| first.is_leader() != second.is_leader()).await;
}

/// Whether the value that `read` returns stays the same for this time.
async fn stays<T: PartialEq>(
    registry: &Registry,
    time: Duration,
    read: impl Fn(&View) -> T + Copy,
) -> bool {
    let (begun, before) = (Instant::now(), registry.read(read));
    while begun.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if registry.read(read) != before {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn a_record_that_somebody_deletes_is_written_anew() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", SHORT).await;
    one_leader(&first, "c1").await;
    for key in [keys::replica("c1"), keys::duty("sweeper")] {
        mesh.store().delete(&key).await.unwrap();
    }
    until(&first, |view| view.replica("c1").is_none()).await;
    until(&first, |view| view.replica("c1").is_some()).await;
    one_leader(&first, "c1").await;
}

/// Issue 10, E1.
#[tokio::test]
async fn a_replica_that_stops_or_dies_leaves_one_event() {
    let mesh = Replicas::new();
    let (first, wire) = mesh.join("c1", SHORT).await;
    one_leader(&first, "c1").await;
    let (second, _) = mesh.join("c2", LONG).await;
    let (third, cut) = mesh.join("c3", SHORT).await;
    until(&first, |view| view.replicas().count() == 3).await;
    let left = |view: &View| -> Vec<String> {
        let left = view.events().filter(|it| it.record.kind == "replica-left");
        left.map(|it| it.record.cause.clone()).collect()
    };
    let cause = |of: &Registry, why: &str| {
        let options = of.options();
        let (name, process) = (&options.replica, &options.process_id);
        format!("replica {name} (process {process}) has gone: {why}")
    };

    let (fourth, _) = mesh.join("c4", LONG).await;
    second.options().stop.cancel();
    let mut expected = vec![cause(&second, "it stopped")];
    until(&first, |view| left(view) == expected).await;
    cut.cut();
    expected.push(cause(&third, "its lease expired"));
    until(&first, |view| left(view) == expected).await;
    // The leader itself: its successor knows which replicas were there.
    wire.cut();
    one_leader(&fourth, "c4").await;
    expected.push(cause(&first, "its lease expired"));
    until(&fourth, |view| left(view) == expected).await;
}
