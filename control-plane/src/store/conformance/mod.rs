//! The laws of the store as tests: one suite that every engine passes. In comes an open, fresh store; nothing of
//! one engine may be assumed here but how far its history reaches. Each law keeps to keys of its own, and all run
//! on one store.

use std::{sync::Arc, time::Duration};

use super::{Changes, Compare, KeyValue, Op, Revision, Store, StoreError, Txn, Watch};

mod leases;
mod watches;

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
    watches::give_every_change_once(engine).await;
    watches::group_by_revision_and_prefix(store).await;
    leases::revoked_leases_take_their_keys(store).await;
    leases::a_put_moves_a_key_to_another_lease(store).await;
    leases::leases_run_out(engine).await;
    watches::compaction_is_said(engine).await;
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
    large_transactions_are_refused(store).await;
}

/// The values of both branches count together: an engine may have to send them in one message.
async fn large_transactions_are_refused(store: &dyn Store) {
    let part = store.max_value_bytes() / 4;
    let parts = |branch: &str, count: usize, part: usize| -> Vec<Op> {
        let key = |n| format!("large/{branch}/{n}/{}", "k".repeat(900));
        (0..count)
            .map(|n| Op::put(&key(n), vec![b'v'; part]))
            .collect()
    };
    let filled = super::MAX_TXN_BYTES / 128;
    let compare = |name: &str| {
        (0..super::MAX_TXN_OPS)
            .map(|n| Compare::absent(&format!("large/{name}/{n}/{}", "c".repeat(900))))
            .collect()
    };
    let full = Txn {
        compare: compare("none"),
        then: parts("then", 128, filled / 2),
        otherwise: parts("otherwise", 128, filled / 2),
    };
    assert!(store.txn(full).await.unwrap().succeeded);
    let found = store.range("large/then/", None).await.unwrap();
    assert!(
        (found.items.len(), found.items[127].value.len()) == (128, filled / 2),
        "read whole"
    );
    let before = found.revision;
    let count = super::MAX_TXN_BYTES / part;
    let over = Txn {
        then: parts("over", count, part),
        otherwise: vec![Op::put("large/one-more", "x")],
        ..Txn::default()
    };
    let bytes = super::MAX_TXN_BYTES + 1;
    let error = store.txn(over).await.unwrap_err();
    assert_eq!(error, StoreError::TxnTooLarge { bytes });
    let mut comparisons: Vec<Compare> = compare("none");
    comparisons.push(Compare::absent("large/one-more"));
    let over = Txn {
        compare: comparisons,
        ..Txn::default()
    };
    let ops = super::MAX_TXN_OPS + 1;
    let error = store.txn(over).await.unwrap_err();
    assert_eq!(error, StoreError::TooManyOps { ops });
    let now = store.range("large/", None).await.unwrap();
    assert_eq!((now.revision, now.items.len()), (before, 128), "unchanged");
}
