//! The invariants of leases, as tests that every engine of the store passes.

use std::time::Duration;

use super::{Engine, Op, Store, StoreError, Txn, get, keys, next, put, summary};

pub(super) async fn revoked_leases_take_their_keys(store: &dyn Store) {
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    let then = vec![
        Op::put_leased("revoke/a", "", lease),
        Op::put_leased("revoke/b", "", lease),
    ];
    let at = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap()
        .revision;
    assert_eq!(get(store, "revoke/a").await.unwrap().lease, Some(lease));
    put(store, "revoke/c", "").await;
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("revoke/", at.next().next()).await.unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(
        summary(&next(&mut watch).await),
        ["revoke/a gone", "revoke/b gone"]
    );
    assert_eq!(keys(store, "revoke/", None).await, ["revoke/c"]);
    let gone = StoreError::LeaseNotFound(lease);
    assert_eq!(store.keep_alive(lease).await.unwrap_err(), gone);
    assert_eq!(store.revoke(lease).await.unwrap_err(), gone);
    let then = vec![
        Op::put("revoke/d", ""),
        Op::put_leased("revoke/a", "", lease),
    ];
    assert_eq!(
        store
            .txn(Txn {
                then,
                ..Txn::default()
            })
            .await
            .unwrap_err(),
        gone
    );
    assert_eq!(get(store, "revoke/d").await, None, "refused as a whole");
    let other = store.grant(Duration::from_secs(600)).await.unwrap();
    assert_ne!(other, lease, "an id is not used twice");
    store.revoke(other).await.unwrap();
}

pub(super) async fn a_put_moves_a_key_to_another_lease(store: &dyn Store) {
    let ttl = Duration::from_secs(600);
    let (first, second) = (
        store.grant(ttl).await.unwrap(),
        store.grant(ttl).await.unwrap(),
    );
    let leased = |key, lease| Txn {
        then: vec![Op::put_leased(key, "", lease)],
        ..Txn::default()
    };
    for key in ["move/to-second", "move/to-none", "move/stays"] {
        store.txn(leased(key, first)).await.unwrap();
    }
    store.txn(leased("move/to-second", second)).await.unwrap();
    put(store, "move/to-none", "").await;
    store.revoke(first).await.unwrap();
    assert_eq!(
        keys(store, "move/", None).await,
        ["move/to-none", "move/to-second"]
    );
    store.revoke(second).await.unwrap();
    assert_eq!(keys(store, "move/", None).await, ["move/to-none"]);
}

pub(super) async fn leases_run_out(engine: &Engine) {
    let store = &*engine.store;
    let long = store.grant(Duration::from_secs(600)).await.unwrap();
    let (short, at) = loop {
        let short = store.grant(engine.shortest_ttl).await.unwrap();
        let then = vec![
            Op::put_leased("expiry/short", "", short),
            Op::put_leased("expiry/long", "", long),
            Op::put("expiry/none", ""),
        ];
        let put = Txn {
            then,
            ..Txn::default()
        };
        match store.txn(put).await {
            Ok(done) => break (short, done.revision),
            // The machine stalled for longer than the TTL.
            Err(error) => assert_eq!(error, StoreError::LeaseNotFound(short)),
        }
    };
    let mut watch = store.watch("expiry/", at.next()).await.unwrap();
    assert_eq!(summary(&next(&mut watch).await), ["expiry/short gone"]);
    assert_eq!(
        store.keep_alive(short).await.unwrap_err(),
        StoreError::LeaseNotFound(short)
    );
    store.keep_alive(long).await.unwrap();
    store.revoke(long).await.unwrap();
}
