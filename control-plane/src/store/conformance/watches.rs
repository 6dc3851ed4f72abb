//! The invariants of watches and of the history behind them.

use super::{
    Engine, Forget, MAX_TXN_BYTES, Op, Store, StoreError, Txn, any, get, next, put, summary,
};

pub(super) async fn give_every_change_once(engine: &Engine) {
    let store = &*engine.store;
    let first = put(store, "watch/a", "0").await;
    let mut late = store.watch("watch/", first).await.unwrap();
    let mut early = store.watch("watch/", first.next()).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = engine.by_turns(writer);
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

/// Each event includes the previous value, so the revision exceeds one message of most engines.
pub(super) async fn give_a_large_revision_whole(engine: &Engine) {
    const KEYS: usize = 100;
    let store = &*engine.store;
    let fill = |byte: u8| {
        let put = |n| Op::put(&format!("whole/{n:03}"), vec![byte; MAX_TXN_BYTES / KEYS]);
        Txn {
            then: (0..KEYS).map(put).collect(),
            ..Txn::default()
        }
    };
    let first = store.txn(fill(b'1')).await.unwrap().revision;
    let mut watch = engine.other.watch("whole/", first.next()).await.unwrap();
    let second = store.txn(fill(b'2')).await.unwrap().revision;
    let mut late = engine.other.watch("whole/", second).await.unwrap();
    for watch in [&mut watch, &mut late] {
        let changes = next(watch).await;
        assert_eq!((changes.revision, changes.events.len()), (second, KEYS));
        for event in changes.events.iter() {
            let (now, before) = (event.now.as_ref().unwrap(), event.before.as_ref().unwrap());
            assert_eq!((now.value[0], before.value[0]), (b'2', b'1'));
            assert_eq!(before.mod_revision, first);
        }
    }
}

pub(super) async fn wait_for_a_revision_to_come(engine: &Engine) {
    let store = &*engine.store;
    let now = put(store, "coming/a", "0").await;
    let mut watch = store.watch("coming/", now.next().next()).await.unwrap();
    put(store, "coming/a", "too early").await;
    put(store, "coming/a", "in time").await;
    assert_eq!(summary(&next(&mut watch).await), ["coming/a=in time"]);
}

/// A watch of all keys reaches each revision that was reported to any writer.
pub(super) async fn reach_what_others_wrote(engine: &Engine) {
    let now = put(&*engine.store, "reach/a", "0").await;
    let mut watch = engine.store.watch("", now.next()).await.unwrap();
    let mut last = now;
    for n in 0..3 {
        let written = put(&*engine.other, "reach/a", &n.to_string()).await;
        let unchanged = engine.store.delete("reach/none").await.unwrap();
        assert!(unchanged >= written);
        while last < unchanged {
            let changes = any(&mut watch).await;
            assert!(changes.revision > last, "in order");
            last = changes.revision;
        }
    }
    assert!(get(&*engine.store, "reach/a").await.is_some());
}

async fn forget(engine: &Engine, before: super::Revision) {
    match &engine.forget {
        Forget::After(revisions) => {
            for n in 0..=*revisions {
                put(&*engine.store, &format!("compact/{n}"), "").await;
            }
        }
        Forget::When(compact) => {
            put(&*engine.store, "compact/0", "").await;
            let last = put(&*engine.store, "compact/1", "").await;
            assert!(last > before);
            compact(last).await;
        }
    }
}

pub(super) async fn compaction_is_reported(engine: &Engine) {
    let store = &*engine.store;
    let old = put(store, "compact/0", "").await;
    let mut idle = store.watch("compact/0", old.next()).await.unwrap();
    let mut held = store.watch("compact/", old).await.unwrap();
    forget(engine, old.next()).await;
    let error = store.range("compact/", Some(old)).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted { requested, .. } if requested == old),
        "{error}"
    );
    let error = store.watch("compact/", old).await.err().unwrap();
    assert!(
        matches!(error, StoreError::Compacted { requested, .. } if requested == old),
        "{error}"
    );
    // A watch that was open all the time either kept up or gets an error; it never skips changes.
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
