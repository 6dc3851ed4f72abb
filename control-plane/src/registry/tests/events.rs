use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use heddle_proto::{registry::v1::Health, store::v1::EventRecord};

use crate::{
    names::keys,
    registry::{
        core::{
            events::{MAX_EVENTS, NewEvent},
            instance_events,
        },
        fixture::{Fixture, identity, instance, names, until, within},
        lease::{NodeLease, NodeWrite},
        model::Event,
        options::RegistryOptions,
        view::View,
    },
    store::{Op, Txn},
};

fn kinds(fixture: &Fixture) -> Vec<String> {
    fixture.registry.read(|view| {
        // Events of normal operation are written with a delay.
        let is_of_node = |record: &EventRecord| {
            !record.node.is_empty() && !instance_events::KINDS.contains(&record.kind.as_str())
        };
        let of_nodes = view.events().filter(|event| is_of_node(&event.record));
        of_nodes.map(|event| event.record.kind.clone()).collect()
    })
}

async fn claim(fixture: &Fixture, process: &str) -> NodeLease {
    let mut lease = NodeLease::claim(&fixture.registry, &identity("a", process))
        .await
        .unwrap();
    let set = vec![instance("a", "users/u1")];
    let revision = lease.replace_all(set).await.unwrap();
    fixture.registry.reached(revision).await;
    lease
}

#[tokio::test]
async fn what_becomes_of_a_node_is_recorded_with_its_cause_in_the_same_transaction() {
    let fixture = Fixture::with_ttl(Duration::from_secs(2)).await;
    let lease = claim(&fixture, "p1").await;
    let store = fixture.registry.store();
    let event = fixture.registry.read(|view| {
        let event = view.events().find(|it| it.record.kind == "node-joined");
        keys::event(&event.unwrap().id)
    });
    let stored = store.get(&event).await.unwrap().unwrap();
    assert_eq!(stored.mod_revision, lease.session());
    drop(lease);
    fixture.until(|view| names(view).is_empty()).await;
    fixture.registry.read(|view| {
        let expired = |event: &&Arc<Event>| event.record.kind == "node-expired";
        let last = view.events().find(expired).unwrap();
        let cause = &last.record.cause;
        assert!(
            cause.contains("no heartbeat for 2s")
                && cause.contains("removed with it: 1 instance of users.default"),
            "{cause}"
        );
        assert_eq!(
            (last.record.node.as_str(), last.record.replica.as_str()),
            ("a", "control")
        );
        assert_eq!(last.record.services, ["users.default"]);
    });
    drop(claim(&fixture, "p1").await);
    let mut second = claim(&fixture, "p2").await;
    second.leave().await.unwrap();
    let all = [
        "node-joined",
        "node-expired",
        "node-returned",
        "node-superseded",
        "node-left",
    ];
    fixture.until(|_| kinds(&fixture) == all).await;
}

/// Issue 10, E1: a proxy without instances that died had no event.
#[tokio::test]
async fn a_node_without_instances_that_dies_has_an_event_once() {
    let fixture = Fixture::with_ttl(Duration::from_secs(2)).await;
    let registry = &fixture.registry;
    let died = NodeLease::claim(registry, &identity("z", "p1"))
        .await
        .unwrap();
    let mut left = NodeLease::claim(registry, &identity("y", "p1"))
        .await
        .unwrap();
    let is_expired = |view: &View| view.node("z").is_some_and(|node| node.expired);
    left.stopping().await.unwrap();
    drop((died, left));
    fixture.until(is_expired).await;
    let expired = |view: &View| {
        let expired = view.events().filter(|it| it.record.kind == "node-expired");
        let words = |it: &Arc<Event>| format!("{}: {}", it.record.node, it.record.cause);
        expired.map(words).collect::<Vec<_>>()
    };
    let once = "z: its lease expired: no heartbeat for 2s; it had no instances";
    fixture.until(|view| expired(view) == [once]).await;
    // It comes back, and dies again.
    drop(
        NodeLease::claim(registry, &identity("z", "p2"))
            .await
            .unwrap(),
    );
    fixture.until(|view| !is_expired(view)).await;
    fixture.until(|view| expired(view) == [once, once]).await;
}

/// Issue 10, D5: a node that was stopped counted as lapsed for an hour.
#[tokio::test]
async fn a_proxy_that_is_stopped_leaves_with_its_lease_and_nothing_is_wrong() {
    let fixture = Fixture::with_ttl(Duration::from_secs(2)).await;
    let mut first = claim(&fixture, "p1").await;
    let revision = first.stopping().await.unwrap();
    drop(first);
    fixture.registry.reached(revision).await;
    fixture.registry.read(|view| {
        let node = view.node("a").unwrap();
        assert!(node.alive && node.left, "{node:?}");
        assert_eq!(names(view).len(), 1, "a restart is no flap");
    });
    // Its successor takes over at once and is alive.
    let mut second = claim(&fixture, "p2").await;
    let is_back = |view: &View| view.node("a").is_some_and(|node| node.alive && !node.left);
    fixture.until(is_back).await;
    second.stopping().await.unwrap();
    drop(second);
    fixture.until(|view| names(view).is_empty()).await;
    fixture.registry.read(|view| {
        let node = view.node("a").unwrap();
        assert!(!node.alive && node.left, "{node:?}");
    });
    let all = [
        "node-joined",
        "node-left",
        "node-returned",
        "node-left",
        "node-left",
    ];
    fixture.until(|_| kinds(&fixture) == all).await;
}

#[tokio::test]
async fn events_are_kept_on_a_lease_and_only_so_many_of_them() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let before = registry.store().counters().leases;
    for n in 0..=MAX_EVENTS {
        let event = NewEvent::of_node("node-joined", &format!("n{n}"), "of a test");
        let then = vec![Op::put("key", n.to_string())];
        let txn = Txn {
            then,
            ..Txn::default()
        };
        registry.txn_with_events(txn, &[event]).await.unwrap();
    }
    fixture
        .until(|view| {
            let newest = view.events().next_back();
            let is_last = |id: &str| id == format!("n{MAX_EVENTS}");
            view.events().len() <= MAX_EVENTS
                && newest.is_some_and(|event| is_last(&event.record.node))
        })
        .await;
    let found = registry
        .store()
        .range_keys(keys::EVENTS, None)
        .await
        .unwrap();
    assert!(found.items.len() <= MAX_EVENTS);
    assert!(found.items.iter().all(|item| item.lease.is_some()));
    assert_eq!(
        registry.store().counters().leases,
        before,
        "they share a lease"
    );
    // The lease is lost: the next event gets a new one.
    let lease = found.items[0].lease.unwrap();
    registry.store().revoke(lease).await.unwrap();
    claim(&fixture, "p1").await;
    fixture
        .until(|view| {
            let kinds = view.events().map(|event| event.record.kind.as_str());
            kinds.eq(["node-joined"])
        })
        .await;
}

/// A wall clock that jumps back by an hour at each read.
fn jumping() -> u64 {
    static HOURS: AtomicU64 = AtomicU64::new(500_000);
    HOURS.fetch_sub(1, Ordering::Relaxed) * 3_600_000
}

/// Issue 10, E1.
#[tokio::test]
async fn what_instances_do_in_normal_operation_is_recorded() {
    let fixture = Fixture::new().await;
    let mut lease = claim(&fixture, "p1").await;
    let recorded = |view: &View, kind: &str, cause: &str| {
        view.events().any(|event| {
            let record = &event.record;
            record.kind == kind && record.instance == "u1" && record.cause.contains(cause)
        })
    };
    fixture
        .until(|view| recorded(view, "instance-joined", "at "))
        .await;
    let (key, mut local) = instance("a", "users/u1");
    local.set_health(Health::Unhealthy);
    local.health_reason = "connection refused".into();
    let write = NodeWrite::Put(key.clone(), Box::new(local));
    lease.change(vec![write]).await.unwrap();
    let refused = "unhealthy: connection refused";
    fixture
        .until(|view| recorded(view, "instance-unhealthy", refused))
        .await;
    let (_, mut local) = instance("a", "users/u1");
    local.set_health(Health::Healthy);
    let write = NodeWrite::Put(key.clone(), Box::new(local));
    lease.change(vec![write]).await.unwrap();
    fixture
        .until(|view| recorded(view, "instance-healthy", "at "))
        .await;
    let write = NodeWrite::Remove(key, None);
    lease.change(vec![write]).await.unwrap();
    let left = "it deregistered";
    fixture
        .until(|view| recorded(view, "instance-left", left))
        .await;
}

/// However many instances join and leave, the other events stay.
#[tokio::test]
async fn ordinary_events_drive_out_no_others() {
    let fixture = Fixture::new().await;
    for (kind, count) in [("node-expired", 300), ("instance-joined", MAX_EVENTS)] {
        for n in 0..count {
            let event = NewEvent::of_node(kind, "a", &format!("n{n}"));
            let events = [event];
            let txn = fixture.registry.txn_with_events(Txn::default(), &events);
            txn.await.unwrap();
        }
    }
    let of = |view: &View, kind: &str| {
        let events = view.events().filter(|event| event.record.kind == kind);
        events.count()
    };
    fixture
        .until(|view| {
            of(view, "node-expired") == 300 && of(view, "instance-joined") <= MAX_EVENTS / 2
        })
        .await;
}

#[tokio::test]
async fn jumps_of_the_clock_change_nothing_but_the_times_of_events() {
    let options = RegistryOptions {
        wall_ms: jumping,
        lease_ttl: Duration::from_secs(2),
        renew_interval: Duration::from_millis(600),
        ..RegistryOptions::default()
    };
    let fixture = Fixture::with_options(tempfile::tempdir().unwrap(), options).await;
    let mut lease = claim(&fixture, "p1").await;
    within(async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(500)).await; // twice the TTL: time itself is what is tested
            lease.beat().await.unwrap();
        }
    })
    .await;
    assert_eq!(fixture.registry.read(names).len(), 1, "it beats, it stays");
    drop(lease);
    until(&fixture.registry, |view| names(view).is_empty()).await;
    let kinds = kinds(&fixture);
    assert_eq!(kinds.len(), 2, "{kinds:?}");
}

/// Only one file reads the system's clock, for the times of events.
#[test]
fn only_events_know_the_time_of_day() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let words = [concat!("System", "Time"), concat!("UNIX", "_EPOCH")];
            if words.iter().any(|word| text.contains(word)) {
                let name = path.strip_prefix(&source).unwrap();
                found.push(name.display().to_string());
            }
        }
    }
    assert_eq!(found, ["registry/wall_clock.rs"]);
}
