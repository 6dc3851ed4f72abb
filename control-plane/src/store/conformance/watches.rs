//! The laws of watches and of the history behind them.

use std::sync::Arc;

use super::{Engine, next, put, summary};
use crate::store::{Op, Store, StoreError, Txn};

pub(super) async fn give_every_change_once(engine: &Engine) {
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

pub(super) async fn group_by_revision_and_prefix(store: &dyn Store) {
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

pub(super) async fn compaction_is_said(engine: &Engine) {
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
