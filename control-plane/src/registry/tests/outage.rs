use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::{
    registry::{
        core::Registry,
        fixture::{Replicas, identity, instance, names, until, within},
        lease::{LeaseError, NodeLease, NodeWrite},
    },
    store::StoreError,
};

/// Longer than the machine may stall.
const TTL: Duration = Duration::from_secs(3);

async fn node(registry: &Registry, name: &str) -> NodeLease {
    let mut lease = NodeLease::claim(registry, &identity(name, "p1"))
        .await
        .unwrap();
    let set = vec![instance(name, "users/u1")];
    let revision = lease.replace_all(set).await.unwrap();
    registry.reached(revision).await;
    lease
}

/// Sends heartbeats like a session, until the lease is lost or the time is over.
async fn beat_for(lease: &mut NodeLease, time: Duration) -> Result<(), LeaseError> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        lease.beat().await?;
        tokio::time::sleep(TTL / 8).await;
    }
    Ok(())
}

#[tokio::test]
async fn while_the_store_is_away_sessions_stay_and_when_it_is_back_nobody_flaps() {
    let mesh = Replicas::new();
    let (registry, wire) = mesh.join("c1", TTL).await;
    until(&registry, |_| registry.is_leader()).await;
    // Two nodes are too few for a mass lapse, which would keep them anyway.
    let mut a = node(&registry, "a").await;
    drop(node(&registry, "b").await);
    beat_for(&mut a, TTL * 2).await.unwrap(); // decisions are made by now: b lapses alone and is removed
    until(&registry, |view| names(view) == ["a/users.default/u1"]).await;
    let mut b = node(&registry, "b").await;
    let mut changes = registry.subscribe();

    wire.cut();
    let away = async {
        let both = tokio::join!(beat_for(&mut a, TTL * 2), beat_for(&mut b, TTL * 2));
        assert_eq!(
            both,
            (Ok(()), Ok(())),
            "the only replica keeps its sessions"
        );
    };
    let (key, local) = instance("c", "users/never");
    let mut late = NodeLease::claim(&registry, &identity("c", "p1")).await;
    assert!(
        late.is_err(),
        "a claim is refused at once, not left waiting"
    );
    away.await;
    assert!(registry.store_away().is_some());
    assert_eq!(registry.read(names).len(), 2, "what is known stays in use");

    wire.mend();
    // Their leases ended in the store while they could not be renewed.
    for lease in [&mut a, &mut b] {
        let lapsed = within(async {
            loop {
                if let Err(error) = lease.beat().await {
                    return error;
                }
                tokio::time::sleep(TTL / 20).await;
            }
        });
        assert!(matches!(lapsed.await, LeaseError::Lapsed { .. }));
    }
    // They return within the time that agents need to reconnect, and nothing has changed.
    tokio::time::sleep(TTL / 4).await;
    let (_a, _b) = (node(&registry, "a").await, node(&registry, "b").await);
    late = NodeLease::claim(&registry, &identity("c", "p1")).await;
    let write = vec![NodeWrite::Put(key, Box::new(local))];
    let revision = late.unwrap().change(write).await.unwrap();
    registry.reached(revision).await;
    assert_eq!(registry.read(names).len(), 3);
    let batch = within(changes.next()).await;
    let seen: Vec<_> = batch.services.iter().map(ToString::to_string).collect();
    assert_eq!(seen, ["users.default"], "for the third node alone");
    assert_eq!(registry.store_away(), None);
    let expired = registry.read(|view| {
        let kinds = view.events().map(|event| event.record.kind.clone());
        kinds.filter(|kind| kind == "node-expired").count()
    });
    assert_eq!(expired, 1, "only the one before the outage");
}

#[tokio::test]
async fn a_change_made_while_the_store_is_away_is_done_when_it_is_back() {
    let mesh = Replicas::new();
    let (registry, wire) = mesh.join("c1", Duration::from_secs(600)).await;
    let mut lease = node(&registry, "a").await;
    wire.cut();
    let (key, local) = instance("a", "users/u2");
    let write = lease.change(vec![NodeWrite::Put(key, Box::new(local))]);
    let mend = async {
        // The write fails and is retried.
        while registry.store_away().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        wire.mend();
    };
    let (revision, ()) = within(async { tokio::join!(write, mend) }).await;
    registry.reached(revision.unwrap()).await;
    assert_eq!(registry.read(names).len(), 2);
}

#[tokio::test]
async fn a_replica_that_is_cut_off_alone_sends_its_nodes_away_before_their_leases_end() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", TTL).await;
    until(&first, |_| first.is_leader()).await;
    let (second, wire) = mesh.join("c2", TTL).await;
    let mut lease = node(&second, "a").await;
    until(&first, |view| names(view) == ["a/users.default/u1"]).await;
    until(&second, |view| view.replicas().count() == 2).await;
    let mut changes = first.subscribe();
    wire.cut();
    let cut = Instant::now();
    let error = beat_for(&mut lease, TTL * 4).await.unwrap_err();
    assert_eq!(error, LeaseError::Cut { node: "a".into() });
    assert!(error.to_string().contains("another replica"), "{error}");
    let took = cut.elapsed();
    if took < TTL * 9 / 10 {
        // In time, unless this machine is so slow that the lease has ended: then it is a restart like any other.
        let _moved = node(&first, "a").await;
        assert_eq!(first.read(names), ["a/users.default/u1"]);
        let mut services = BTreeSet::new();
        while let Ok(batch) = tokio::time::timeout(TTL / 10, changes.next()).await {
            services.extend(batch.services);
        }
        assert_eq!(services, BTreeSet::new(), "no flap");
    }
}

/// Issue 10, D2: one failed request to the store per TTL suspended expiry forever.
#[tokio::test]
async fn a_dead_node_goes_although_the_store_fails_a_request_now_and_then() {
    let mesh = Replicas::new();
    let (registry, _wire) = mesh.join("c1", TTL).await;
    until(&registry, |_| registry.is_leader()).await;
    let lease = node(&registry, "a").await;
    let failing = async {
        loop {
            let cause = "no leader".to_owned();
            registry.on_store_result::<()>(&Err(StoreError::Unavailable { cause }));
            registry.on_store_result(&Ok(()));
            tokio::time::sleep(TTL / 2).await;
        }
    };
    drop(lease);
    tokio::select! {
        () = until(&registry, |view| names(view).is_empty()) => {}
        () = failing => {}
    }
}

/// Issue 10, D2: nobody noticed it, and the replica served its old view until it was restarted.
#[tokio::test]
async fn a_follower_that_panics_is_begun_anew_and_misses_nothing() {
    let mesh = Replicas::new();
    let (first, _) = mesh.join("c1", Duration::from_secs(600)).await;
    let (second, wire) = mesh.join("c2", Duration::from_secs(600)).await;
    wire.poison();
    let _a = node(&first, "a").await;
    until(&second, |view| names(view) == ["a/users.default/u1"]).await;
    let ended = second.options().tasks.ended();
    assert!(ended.contains(&("registry-follower", 1)), "{ended:?}");
    let _b = node(&first, "b").await;
    until(&second, |view| names(view).len() == 2).await;
}
