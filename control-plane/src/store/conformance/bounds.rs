//! The limits of keys, values and transactions (invariant 8).

use super::{Compare, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Store, StoreError, Txn, get};

pub(super) async fn are_kept(store: &dyn Store) {
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
    for key in [String::new(), "k".repeat(MAX_KEY_BYTES + 1)] {
        let error = store.put(&key, "".into()).await.unwrap_err();
        assert_eq!(error, StoreError::KeyInvalid { bytes: key.len() });
    }
    let many = |count| {
        (0..count)
            .map(|n| Op::put(&format!("bounds/{n}"), ""))
            .collect()
    };
    let then = many(MAX_TXN_OPS + 1);
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
            ops: MAX_TXN_OPS + 1
        }
    );
    assert_eq!(
        store.range("", None).await.unwrap().revision,
        before,
        "nothing was changed"
    );
    store
        .txn(Txn {
            then: many(MAX_TXN_OPS),
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

/// The values of both branches count together: an engine may have to send them in one message.
pub(super) async fn hold_for_the_values_of_a_transaction_together(store: &dyn Store) {
    let part = store.max_value_bytes() / 4;
    let parts = |branch: &str, count: usize, part: usize| -> Vec<Op> {
        let key = |n| format!("large/{branch}/{n}/{}", "k".repeat(900));
        (0..count)
            .map(|n| Op::put(&key(n), vec![b'v'; part]))
            .collect()
    };
    let filled = MAX_TXN_BYTES / 128;
    let compare = |name: &str| {
        (0..MAX_TXN_OPS)
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
    let count = MAX_TXN_BYTES / part;
    let over = Txn {
        then: parts("over", count, part),
        otherwise: vec![Op::put("large/one-more", "x")],
        ..Txn::default()
    };
    let bytes = MAX_TXN_BYTES + 1;
    let error = store.txn(over).await.unwrap_err();
    assert_eq!(error, StoreError::TxnTooLarge { bytes });
    let mut comparisons: Vec<Compare> = compare("none");
    comparisons.push(Compare::absent("large/one-more"));
    let over = Txn {
        compare: comparisons,
        ..Txn::default()
    };
    let ops = MAX_TXN_OPS + 1;
    let error = store.txn(over).await.unwrap_err();
    assert_eq!(error, StoreError::TooManyOps { ops });
    let now = store.range("large/", None).await.unwrap();
    assert_eq!((now.revision, now.items.len()), (before, 128), "unchanged");
}
