//! The checks that every engine makes first: whether keys, values and transactions exceed the limits of invariant 8.
//! The result is the first fault with its figures. The only engine-specific limit known here is the length of values.

use std::{collections::HashSet, sync::Arc};

use super::{Compare, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, StoreError, Txn};

/// Checks a transaction; `max_value_bytes` is the engine's limit.
pub(super) fn check(txn: &Txn, max_value_bytes: usize) -> Result<(), StoreError> {
    count(txn.compare.len())?;
    for compare in &txn.compare {
        let (Compare::ModRevision(name, _) | Compare::CreateRevision(name, _)) = compare;
        key(name)?;
    }
    let mut bytes = 0;
    for ops in [&txn.then, &txn.otherwise] {
        count(ops.len())?;
        let mut keys = HashSet::new();
        for op in ops {
            key(op.key())?;
            if !keys.insert(op.key()) {
                return Err(StoreError::DuplicateKey(Arc::clone(op.key())));
            }
            let value_bytes = op.value_bytes();
            if value_bytes > max_value_bytes {
                return Err(StoreError::ValueTooLarge {
                    key: Arc::clone(op.key()),
                    bytes: value_bytes,
                    max: max_value_bytes,
                });
            }
            bytes += value_bytes;
        }
    }
    if bytes > MAX_TXN_BYTES {
        return Err(StoreError::TxnTooLarge { bytes });
    }
    Ok(())
}

fn count(ops: usize) -> Result<(), StoreError> {
    if ops > MAX_TXN_OPS {
        return Err(StoreError::TooManyOps { ops });
    }
    Ok(())
}

fn key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(StoreError::KeyInvalid { bytes: key.len() });
    }
    Ok(())
}
