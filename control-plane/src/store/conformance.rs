//! The laws of the store as tests: one suite that every engine passes. In comes an open, fresh store; nothing of
//! one engine may be assumed here but how far its history reaches. Each law keeps to keys of its own, and all run
//! on one store.

use std::{sync::Arc, time::Duration};

use super::{Changes, Compare, KeyValue, Op, Revision, Store, StoreError, Txn, Watch};

/// A store under test.
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    /// Revisions after which an old one is compacted.
    pub(crate) history: u64,
    /// The shortest TTL that the engine keeps.
    pub(crate) shortest_ttl: Duration,
}

/// Runs every law.
pub(crate) async fn all(engine: &Engine) {
    let store = &*engine.store;
    revisions_count_changes(store).await;
    keys_know_their_revisions(store).await;
    transactions_are_atomic(store).await;
    comparisons_decide_one_branch(store).await;
    one_of_many_rivals_wins(engine).await;
    ranges_are_sorted_and_of_one_revision(store).await;
    bounds_are_kept(store).await;
    watches_give_every_change_once(engine).await;
    watches_group_by_revision_and_prefix(store).await;
    revoked_leases_take_their_keys(store).await;
    a_put_moves_a_key_to_another_lease(store).await;
    leases_run_out(engine).await;
    compaction_is_said(engine).await;
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    store.put(key, value.to_owned().into()).await.unwrap()
}

async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    store.get(key).await.unwrap()
}

async fn keys(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Vec<String> {
    let range = store.range(prefix, at).await.unwrap();
    range
        .items
        .iter()
        .map(|item| item.key.to_string())
        .collect()
}

async fn next(watch: &mut Watch) -> Changes {
    let next = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    next.expect("the watch gives no change")
        .expect("the watch ended")
        .unwrap()
}

fn summary(changes: &Changes) -> Vec<String> {
    let line = |event: &super::Event| match &event.now {
        Some(now) => format!("{}={}", event.key, String::from_utf8_lossy(&now.value)),
        None => format!("{} gone", event.key),
    };
    changes.events.iter().map(line).collect()
}

async fn revisions_count_changes(store: &dyn Store) {
    let first = put(store, "revisions/a", "1").await;
    assert_eq!(
        put(store, "revisions/a", "1").await,
        first.next(),
        "an equal put is a change"
    );
    assert_eq!(
        store.delete("revisions/a").await.unwrap(),
        first.next().next()
    );
    let unchanged = store.delete("revisions/a").await.unwrap();
    assert_eq!(
        unchanged,
        first.next().next(),
        "deleting nothing is no change"
    );
    let range = store.range("revisions/", None).await.unwrap();
    assert_eq!((range.revision, range.items.len()), (unchanged, 0));
}

async fn keys_know_their_revisions(store: &dyn Store) {
    let made = put(store, "versions/a", "1").await;
    let changed = put(store, "versions/a", "2").await;
    let item = get(store, "versions/a").await.unwrap();
    assert_eq!((item.create_revision, item.mod_revision), (made, changed));
    assert_eq!(
        (&*item.key, &*item.value, item.lease),
        ("versions/a", &b"2"[..], None)
    );
    store.delete("versions/a").await.unwrap();
    assert_eq!(get(store, "versions/a").await, None);
    let again = put(store, "versions/a", "3").await;
    assert_eq!(
        get(store, "versions/a").await.unwrap().create_revision,
        again
    );
}

async fn transactions_are_atomic(store: &dyn Store) {
    put(store, "atomic/b", "old").await;
    let then = vec![
        Op::put("atomic/a", "1"),
        Op::delete("atomic/b"),
        Op::put("atomic/c", "3"),
        Op::delete("atomic/none"),
    ];
    let result = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap();
    assert!(result.succeeded);
    assert_eq!(keys(store, "atomic/", None).await, ["atomic/a", "atomic/c"]);
    for key in ["atomic/a", "atomic/c"] {
        assert_eq!(get(store, key).await.unwrap().mod_revision, result.revision);
    }
    let twice = vec![Op::put("atomic/a", "2"), Op::delete("atomic/a")];
    let refused = store
        .txn(Txn {
            then: twice,
            ..Txn::default()
        })
        .await
        .unwrap_err();
    assert_eq!(refused, StoreError::DuplicateKey("atomic/a".into()));
    assert_eq!(get(store, "atomic/a").await.unwrap().value, "1");
}

async fn comparisons_decide_one_branch(store: &dyn Store) {
    let run = |compare: Vec<Compare>| {
        let then = vec![Op::put("branch/then", "x")];
        let otherwise = vec![Op::put("branch/otherwise", "x")];
        store.txn(Txn {
            compare,
            then,
            otherwise,
        })
    };
    let at = put(store, "branch/a", "1").await;
    let holds = run(vec![
        Compare::absent("branch/none"),
        Compare::unchanged("branch/a", at),
    ]);
    assert!(holds.await.unwrap().succeeded);
    assert_eq!(
        keys(store, "branch/", None).await,
        ["branch/a", "branch/then"]
    );
    let later = put(store, "branch/a", "2").await;
    for compare in [
        Compare::absent("branch/a"),
        Compare::unchanged("branch/a", at),
        Compare::unchanged("branch/none", at),
        Compare::CreateRevision("branch/a".into(), later),
    ] {
        store.delete("branch/otherwise").await.unwrap();
        let result = run(vec![Compare::unchanged("branch/a", later), compare.clone()]);
        assert!(!result.await.unwrap().succeeded, "{compare:?}");
        assert!(
            get(store, "branch/otherwise").await.is_some(),
            "{compare:?}"
        );
    }
    let created = Compare::CreateRevision("branch/a".into(), at);
    assert!(run(vec![created]).await.unwrap().succeeded);
}

async fn one_of_many_rivals_wins(engine: &Engine) {
    let at = put(&*engine.store, "rivals", "0").await;
    let rivals: Vec<_> = (0..50)
        .map(|rival| {
            let store = Arc::clone(&engine.store);
            tokio::spawn(async move {
                let compare = vec![Compare::unchanged("rivals", at)];
                let then = vec![Op::put("rivals", rival.to_string())];
                store
                    .txn(Txn {
                        compare,
                        then,
                        ..Txn::default()
                    })
                    .await
                    .unwrap()
                    .succeeded
            })
        })
        .collect();
    let mut winners = 0;
    for rival in rivals {
        winners += u32::from(rival.await.unwrap());
    }
    assert_eq!(winners, 1);
}

async fn ranges_are_sorted_and_of_one_revision(store: &dyn Store) {
    for key in ["range/b", "range/a/1", "range/c", "range/a"] {
        put(store, key, key).await;
    }
    put(store, "rangf", "").await;
    let then = store.range("range/", None).await.unwrap().revision;
    put(store, "range/b", "new").await;
    store.delete("range/a").await.unwrap();
    put(store, "range/0", "").await;
    assert_eq!(
        keys(store, "range/", None).await,
        ["range/0", "range/a/1", "range/b", "range/c"]
    );
    assert_eq!(
        keys(store, "range/", Some(then)).await,
        ["range/a", "range/a/1", "range/b", "range/c"]
    );
    let old = store.range("range/b", Some(then)).await.unwrap();
    assert_eq!(
        (old.revision, &*old.items[0].value),
        (then, &b"range/b"[..])
    );
    let bare = store.range_keys("range/b", None).await.unwrap();
    assert_eq!(
        (&*bare.items[0].key, bare.items[0].value.len()),
        ("range/b", 0)
    );
    let now = store.range("range/", None).await.unwrap().revision;
    let error = store.range("range/", Some(now.next())).await.unwrap_err();
    assert_eq!(
        error,
        StoreError::Future {
            asked: now.next(),
            now
        }
    );
}

async fn bounds_are_kept(store: &dyn Store) {
    let before = store.range("", None).await.unwrap().revision;
    let max = store.max_value_bytes();
    let error = store
        .put("bounds/large", vec![0; max + 1].into())
        .await
        .unwrap_err();
    let key = "bounds/large".into();
    assert_eq!(
        error,
        StoreError::ValueTooLarge {
            key,
            bytes: max + 1,
            max
        }
    );
    let text = error.to_string();
    assert!(
        text.contains("bounds/large") && text.contains(&max.to_string()),
        "{text}"
    );
    for key in [String::new(), "k".repeat(super::MAX_KEY_BYTES + 1)] {
        let error = store.put(&key, "".into()).await.unwrap_err();
        assert_eq!(error, StoreError::KeyInvalid { bytes: key.len() });
    }
    let many = |count| {
        (0..count)
            .map(|n| Op::put(&format!("bounds/{n}"), ""))
            .collect()
    };
    let then = many(super::MAX_TXN_OPS + 1);
    let error = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        error,
        StoreError::TooManyOps {
            ops: super::MAX_TXN_OPS + 1
        }
    );
    assert_eq!(
        store.range("", None).await.unwrap().revision,
        before,
        "nothing was changed"
    );
    store
        .txn(Txn {
            then: many(super::MAX_TXN_OPS),
            ..Txn::default()
        })
        .await
        .unwrap();
    store
        .put("bounds/large", vec![7; max].into())
        .await
        .unwrap();
    assert_eq!(get(store, "bounds/large").await.unwrap().value.len(), max);
    store.delete("bounds/large").await.unwrap();
}

async fn watches_give_every_change_once(engine: &Engine) {
    let store = &*engine.store;
    let first = put(store, "watch/a", "0").await;
    let mut late = store.watch("watch/", first).await.unwrap();
    let mut early = store.watch("watch/", first.next()).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&engine.store);
            tokio::spawn(async move {
                for n in 0..10 {
                    put(&*store, &format!("watch/{writer}"), &n.to_string()).await;
                }
            })
        })
        .collect();
    assert_eq!(summary(&next(&mut late).await), ["watch/a=0"]);
    for watch in [&mut late, &mut early] {
        let mut seen = std::collections::BTreeMap::new();
        let mut last = first;
        for _ in 0..40 {
            let changes = next(watch).await;
            assert!(changes.revision > last, "in order");
            last = changes.revision;
            let [event] = &*changes.events else {
                panic!("one change each: {changes:?}")
            };
            let value = event.now.as_ref().unwrap().value.clone();
            let expected = seen.entry(event.key.clone()).or_insert(0);
            assert_eq!(value, expected.to_string(), "none lost, none twice");
            *expected += 1;
        }
        assert_eq!(seen.len(), 4);
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn watches_group_by_revision_and_prefix(store: &dyn Store) {
    put(store, "group/b", "old").await;
    let from = store.range("", None).await.unwrap().revision.next();
    let mut watch = store.watch("group/", from).await.unwrap();
    put(store, "groups", "not watched").await;
    let then = vec![
        Op::put("group/a", "1"),
        Op::put("other", "x"),
        Op::delete("group/b"),
    ];
    let at = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap()
        .revision;
    let changes = next(&mut watch).await;
    assert_eq!(changes.revision, at);
    assert_eq!(summary(&changes), ["group/a=1", "group/b gone"]);
    assert_eq!(changes.events[1].before.as_ref().unwrap().value, "old");
    assert_eq!(changes.events[0].before, None);
}

async fn revoked_leases_take_their_keys(store: &dyn Store) {
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

async fn a_put_moves_a_key_to_another_lease(store: &dyn Store) {
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

async fn leases_run_out(engine: &Engine) {
    let store = &*engine.store;
    let short = store.grant(engine.shortest_ttl).await.unwrap();
    let long = store.grant(Duration::from_secs(600)).await.unwrap();
    let then = vec![
        Op::put_leased("expiry/short", "", short),
        Op::put_leased("expiry/long", "", long),
        Op::put("expiry/none", ""),
    ];
    let at = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap()
        .revision;
    let mut watch = store.watch("expiry/", at.next()).await.unwrap();
    assert_eq!(summary(&next(&mut watch).await), ["expiry/short gone"]);
    assert_eq!(
        store.keep_alive(short).await.unwrap_err(),
        StoreError::LeaseNotFound(short)
    );
    store.keep_alive(long).await.unwrap();
    store.revoke(long).await.unwrap();
}

async fn compaction_is_said(engine: &Engine) {
    let store = &*engine.store;
    let old = put(store, "compact/0", "").await;
    let mut idle = store.watch("compact/0", old.next()).await.unwrap();
    let mut held = store.watch("compact/", old).await.unwrap();
    for n in 0..=engine.history {
        put(store, &format!("compact/{n}"), "").await;
    }
    let error = store.range("compact/", Some(old)).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted { asked, .. } if asked == old),
        "{error}"
    );
    let error = store.watch("compact/", old).await.err().unwrap();
    assert!(
        matches!(error, StoreError::Compacted { asked, .. } if asked == old),
        "{error}"
    );
    // A watch that was there all the time either kept up or is told, it never skips.
    for watch in [&mut idle, &mut held] {
        match watch.next().await.unwrap() {
            Ok(changes) => assert!(changes.revision <= old.next()),
            Err(error) => {
                assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
                assert!(watch.next().await.is_none(), "after an error it ends");
            }
        }
    }
}
