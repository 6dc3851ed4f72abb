//! The invariants of the store as tests that every engine passes. The suite gets an open, empty store, opened twice if
//! several processes may share it; it depends on no engine, except for how to make it compact its history. Each test
//! uses its own keys, and all run on one store. The suite uses only its parent module's imports of the store, so that
//! tests of engines outside of this crate can include it.

use std::{pin::Pin, sync::Arc, time::Duration};

use super::{
    Changes, Compare, Event, KeyValue, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision,
    Store, StoreError, Txn, Watch,
};

mod bounds;
mod leases;
mod rivals;
mod watches;

/// A store under test.
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    /// The same store, opened a second time if the engine allows it.
    pub(crate) other: Arc<dyn Store>,
    pub(crate) forget: Forget,
    /// The shortest TTL that the engine supports.
    pub(crate) shortest_ttl: Duration,
}

impl Engine {
    /// The first handle for even numbers, the second for odd ones.
    fn by_turns(&self, number: usize) -> Arc<dyn Store> {
        Arc::clone(if number.is_multiple_of(2) {
            &self.store
        } else {
            &self.other
        })
    }
}

/// How the engine is made to compact an old revision.
#[allow(dead_code, reason = "an engine has one of them")]
pub(crate) enum Forget {
    /// It compacts by itself when there are this many newer ones.
    After(u64),
    /// It compacts on request.
    When(Compact),
}

/// Compacts everything before a revision.
pub(crate) type Compact = Box<dyn Fn(Revision) -> Pin<Box<dyn Future<Output = ()>>>>;

/// Runs every invariant.
pub(crate) async fn all(engine: &Engine) {
    let store = &*engine.store;
    revisions_count_changes(store).await;
    keys_know_their_revisions(store).await;
    transactions_are_atomic(store).await;
    comparisons_decide_one_branch(store).await;
    rivals::one_of_many_wins(engine).await;
    rivals::take_turns(engine).await;
    ranges_are_sorted_and_of_one_revision(store).await;
    long_ranges_are_whole_and_of_one_revision(engine).await;
    bounds::are_kept(store).await;
    bounds::hold_for_the_values_of_a_transaction_together(store).await;
    watches::give_every_change_once(engine).await;
    watches::group_by_revision_and_prefix(store).await;
    watches::give_a_large_revision_whole(engine).await;
    watches::wait_for_a_revision_to_come(engine).await;
    watches::reach_what_others_wrote(engine).await;
    leases::revoked_leases_take_their_keys(store).await;
    leases::a_put_moves_a_key_to_another_lease(store).await;
    leases::leases_run_out(engine).await;
    watches::compaction_is_reported(engine).await;
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

/// The next changes that have events.
async fn next(watch: &mut Watch) -> Changes {
    loop {
        let changes = any(watch).await;
        if !changes.events.is_empty() {
            return changes;
        }
    }
}

/// The next changes, with or without events.
async fn any(watch: &mut Watch) -> Changes {
    let next = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    next.expect("the watch gives no change")
        .expect("the watch ended")
        .unwrap()
}

fn summary(changes: &Changes) -> Vec<String> {
    let line = |event: &Event| match &event.now {
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
            requested: now.next(),
            now
        }
    );
}

/// More than an engine reads or sends at a time.
async fn long_ranges_are_whole_and_of_one_revision(engine: &Engine) {
    const KEYS: usize = 600;
    const EACH: usize = 100;
    let store = &*engine.store;
    let name = |n: usize| format!("long/{n:04}");
    for first in (0..KEYS).step_by(EACH) {
        let put = |n| Op::put(&name(n), vec![b'v'; MAX_TXN_BYTES / EACH]);
        let then = (first..first + EACH).map(put).collect();
        let txn = Txn {
            then,
            ..Txn::default()
        };
        store.txn(txn).await.unwrap();
    }
    let writer = tokio::spawn({
        let other = Arc::clone(&engine.other);
        async move {
            for n in 0..KEYS {
                other.put(&name(n), "new".into()).await.unwrap();
                other.delete(&name(KEYS - 1 - n)).await.unwrap();
            }
        }
    });
    loop {
        let range = store.range("long/", None).await.unwrap();
        let newest = range.items.iter().map(|item| item.mod_revision).max();
        assert!(newest.is_none_or(|newest| newest <= range.revision));
        let again = store.range("long/", Some(range.revision)).await.unwrap();
        assert_eq!(again.items.len(), range.items.len(), "of one revision");
        assert!(again == range, "read again it is the same");
        let bare = store.range_keys("long/", Some(range.revision)).await;
        let bare: Vec<_> = bare.unwrap().items.into_iter().map(|it| it.key).collect();
        let full: Vec<_> = range.items.into_iter().map(|it| it.key).collect();
        assert_eq!(bare, full);
        if writer.is_finished() {
            break;
        }
    }
    writer.await.unwrap();
}
