//! Translates between the store's and etcd's types: keys with the prefix of this mesh, transactions, values. Pure.

use std::{str, sync::Arc, time::Duration};

use bytes::Bytes;

use super::api::{self, compare, request_op};
use crate::store::{Compare, KeyValue, LeaseId, Op, Revision, Txn};

/// The keys of one mesh in an etcd: those under a prefix.
#[derive(Clone, Debug)]
pub(super) struct Space {
    prefix: Arc<str>,
}

impl Space {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    pub(super) fn key(&self, key: &str) -> Bytes {
        [self.prefix.as_bytes(), key.as_bytes()].concat().into()
    }

    /// The range of all keys that begin with `prefix`: its first key, and the key after its last.
    pub(super) fn range(&self, prefix: &str) -> (Bytes, Bytes) {
        let first = self.key(prefix);
        let mut end = first.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return (first, end.into());
            }
        }
        // Only 0xff bytes: to the end of all keys.
        (first, Bytes::from_static(&[0]))
    }

    /// The store's name of a key; none if it is not under the prefix or not text, so another program wrote it.
    fn name(&self, key: &[u8]) -> Option<Arc<str>> {
        let name = key.strip_prefix(self.prefix.as_bytes())?;
        Some(str::from_utf8(name).ok()?.into())
    }

    pub(super) fn item(&self, found: api::KeyValue) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.name(&found.key)?,
            value: found.value,
            create_revision: revision(found.create_revision),
            mod_revision: revision(found.mod_revision),
            lease: lease(found.lease),
        })
    }

    pub(super) fn event(&self, event: api::Event) -> Option<(Revision, crate::store::Event)> {
        let is_put = event.r#type() == api::event::EventType::Put;
        let kv = event.kv?;
        let at = revision(kv.mod_revision);
        let key = self.name(&kv.key)?;
        let now = if is_put { self.item(kv) } else { None };
        let before = event.prev_kv.and_then(|before| self.item(before));
        Some((at, crate::store::Event { key, now, before }))
    }

    /// A linearizable read of one key, to learn the revision.
    pub(super) fn revision_only(&self) -> api::RangeRequest {
        api::RangeRequest {
            key: self.key(""),
            limit: 1,
            count_only: true,
            ..api::RangeRequest::default()
        }
    }

    pub(super) fn txn(&self, txn: &Txn) -> api::TxnRequest {
        let ops = |ops: &[Op]| ops.iter().map(|op| self.op(op)).collect();
        api::TxnRequest {
            compare: txn.compare.iter().map(|it| self.compare(it)).collect(),
            success: ops(&txn.then),
            failure: ops(&txn.otherwise),
        }
    }

    fn compare(&self, it: &Compare) -> api::Compare {
        let (key, target, union) = match it {
            Compare::ModRevision(key, at) => (
                key,
                compare::CompareTarget::Mod,
                compare::TargetUnion::ModRevision(number(*at)),
            ),
            Compare::CreateRevision(key, at) => (
                key,
                compare::CompareTarget::Create,
                compare::TargetUnion::CreateRevision(number(*at)),
            ),
        };
        api::Compare {
            result: compare::CompareResult::Equal.into(),
            target: target.into(),
            key: self.key(key),
            target_union: Some(union),
        }
    }

    fn op(&self, op: &Op) -> api::RequestOp {
        let request = match op {
            Op::Put { key, value, lease } => request_op::Request::RequestPut(api::PutRequest {
                key: self.key(key),
                value: value.clone(),
                lease: lease.map_or(0, id),
            }),
            Op::Delete { key } => {
                request_op::Request::RequestDeleteRange(api::DeleteRangeRequest {
                    key: self.key(key),
                    range_end: Bytes::new(),
                })
            }
        };
        api::RequestOp {
            request: Some(request),
        }
    }
}

pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// etcd's lease ids are signed 64-bit numbers; ours have the same bits.
pub(super) fn id(lease: LeaseId) -> i64 {
    lease.0.cast_signed()
}

pub(super) fn lease(id: i64) -> Option<LeaseId> {
    (id != 0).then(|| LeaseId(id.cast_unsigned()))
}

/// etcd supports whole seconds only: a lease may live longer than requested, never shorter.
pub(super) fn seconds(ttl: Duration) -> i64 {
    let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(whole.max(1)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        let check = |space: &str, prefix: &str, first: &[u8], end: &[u8]| {
            let (found, behind) = Space::new(space).range(prefix);
            assert_eq!((&*found, &*behind), (first, end), "{space} {prefix}");
        };
        check("heddle/", "", b"heddle/", b"heddle0");
        check("heddle/", "node/", b"heddle/node/", b"heddle/node0");
        check("x\u{7f}", "", b"x\x7f", b"x\x80");
        // No text ends like this, but it must work: the last byte below 0xff is incremented.
        let space = Space::new("ÿ"); // c3 bf
        assert_eq!(&*space.range("").1, b"\xc3\xc0");
    }

    #[test]
    fn what_others_wrote_is_not_ours() {
        let space = Space::new("heddle/");
        let item = |key: &[u8]| {
            let key = Bytes::copy_from_slice(key);
            space.item(api::KeyValue {
                key,
                ..api::KeyValue::default()
            })
        };
        assert_eq!(&*item(b"heddle/node/a").unwrap().key, "node/a");
        assert_eq!(item(b"other/node/a"), None);
        assert_eq!(item(b"heddle/\xff"), None);
    }

    #[test]
    fn times_to_live_are_rounded_up() {
        let check = |ms, expect| assert_eq!(seconds(Duration::from_millis(ms)), expect, "{ms}");
        check(1, 1);
        check(1000, 1);
        check(1001, 2);
        check(10_000, 10);
        check(0, 1);
    }

    #[test]
    fn lease_ids_keep_their_bits() {
        for bits in [1, i64::MAX, -2] {
            assert_eq!(id(lease(bits).unwrap()), bits);
        }
        assert_eq!(lease(0), None);
    }
}
