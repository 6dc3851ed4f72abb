//! The single source of truth: a small, ordered, versioned map that survives crashes, behind one trait. It takes
//! transactions, leases and reads from `registry/`, and returns results, each with its revision, and a stream of
//! changes. It does not know what a node or an instance is, and only `app` names an engine.
//!
//! # The invariants
//! Every engine keeps them; `conformance` contains them as tests. They are those of etcd v3, as far as we use it.
//!
//! 1. **Revisions.** The store has one revision. A transaction that changes something raises it by one, and all its
//!    changes have that revision; a transaction that changes nothing does not raise it. It never decreases, not even
//!    across a restart. An empty store is at revision 1.
//! 2. **Reads are linearizable.** They see every transaction that was answered before they began, and none that is not
//!    durable.
//! 3. **Transactions are atomic.** If all comparisons are true, `then` is applied, otherwise `otherwise`. A transaction
//!    may change a key only once. What was answered is durable.
//! 4. **Versions of a key.** `create_revision` is that of the write that created the key, `mod_revision` that of the
//!    last write. Both are 0 for an absent key, so that absence is a comparison too.
//! 5. **Range** reads all keys with a prefix, in byte order, at one revision: the current one, or an earlier one that
//!    is not compacted yet.
//! 6. **Leases.** A lease lives for its TTL after it was granted or last kept alive, by a monotonic clock. A put
//!    attaches the key to a lease (or to none), replacing its previous lease. When the lease expires or is revoked, its
//!    keys are deleted in one revision. When an engine restarts, its leases get a full TTL again: they may live longer
//!    than requested, never shorter.
//! 7. **Watch** returns every change of the keys with a prefix since a revision, in order, none twice, none missing,
//!    all changes of one revision together. If others raise the revision too, it also returns how far it is, without
//!    events, so that it soon reaches every revision that this process learnt. If the history does not go back far
//!    enough, it returns [`StoreError::Compacted`]: the watcher then reads the current state and watches from there.
//! 8. **Bounds.** A key is at most [`MAX_KEY_BYTES`] long, a value at most [`Store::max_value_bytes`]. A transaction
//!    has at most [`MAX_TXN_OPS`] comparisons, as many operations in each branch, and [`MAX_TXN_BYTES`] in all its
//!    values together (both branches). Anything larger is refused and changes nothing.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

mod bounds;
mod embedded;
mod etcd;
mod history;
mod leases;
pub(crate) mod machine;
#[cfg(test)]
pub(crate) mod conformance;

pub use embedded::{Embedded, EmbeddedOptions};
pub use etcd::{Etcd, EtcdOptions, prefix as etcd_prefix, urls as etcd_urls};

/// The longest key in bytes: three DNS labels, a node and a prefix fit with room to spare.
pub const MAX_KEY_BYTES: usize = 1024;
/// The most operations of one transaction; 128 is etcd's own default limit.
pub const MAX_TXN_OPS: usize = 128;
/// The most bytes of the values of one transaction. Together with 128 of the longest keys in its comparisons and in
/// each branch, it stays below the 1.5 MiB that etcd accepts in one request by default.
pub const MAX_TXN_BYTES: usize = 1 << 20;

/// A point in the store's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies a lease; assigned by the engine, never 0, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One key at a revision. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Arc<str>,
    /// Empty if only keys were requested.
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub lease: Option<LeaseId>,
}

/// The result of a range read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The revision at which it was read.
    pub revision: Revision,
    /// In byte order of the keys.
    pub items: Vec<KeyValue>,
}

/// A condition of a transaction. An absent key has revision 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    ModRevision(Arc<str>, Revision),
    CreateRevision(Arc<str>, Revision),
}

impl Compare {
    /// The key does not exist.
    #[must_use]
    pub fn absent(key: &str) -> Self {
        Self::CreateRevision(key.into(), Revision(0))
    }

    /// The key was last written at this revision (0: it does not exist).
    #[must_use]
    pub fn unchanged(key: &str, at: Revision) -> Self {
        Self::ModRevision(key.into(), at)
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Arc<str>,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    /// Deleting an absent key changes nothing.
    Delete { key: Arc<str> },
}

impl Op {
    #[must_use]
    pub fn put(key: &str, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    #[must_use]
    pub fn put_leased(key: &str, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        }
    }

    #[must_use]
    pub fn delete(key: &str) -> Self {
        Self::Delete { key: key.into() }
    }

    #[must_use]
    pub fn value_bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        }
    }

    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// If all comparisons are true, `then` is applied, otherwise `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

/// The result of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnResult {
    /// All comparisons were true, so `then` was applied.
    pub succeeded: bool,
    /// The store's revision after the transaction, which its changes have.
    pub revision: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Arc<str>,
    /// The new state; none if the key was deleted.
    pub now: Option<KeyValue>,
    /// The previous state; none if the key did not exist.
    pub before: Option<KeyValue>,
}

/// All changes of one revision that match a watch. Without events it reports how far the watch is: nothing that matches
/// has changed since the last `Changes`, up to this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    pub revision: Revision,
    pub events: Arc<[Event]>,
}

/// An open watch: `next` waits for the next revision that changed a watched key. After an error it ends.
pub struct Watch(Pin<Box<dyn Stream<Item = Result<Changes, StoreError>> + Send>>);

impl Watch {
    pub fn new(changes: impl Stream<Item = Result<Changes, StoreError>> + Send + 'static) -> Self {
        Self(Box::pin(changes))
    }

    /// None if the store was closed. Cancel safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Changes, StoreError>> {
        self.0.next().await
    }
}

/// Why a request to the store failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    #[error(
        "the store {path} is in use by another process: stop the other heddle-control, or give this one \
         its own file with --store embedded:PATH"
    )]
    InUse { path: String },
    #[error(
        "{path} is not a store of heddle-control ({cause}): give another path with --store embedded:PATH, \
         or move the file away to start with an empty store"
    )]
    Foreign { path: String, cause: String },
    #[error(
        "the store {path} is damaged ({cause}): restore it from a backup, or move it away to start with an \
         empty store (nodes register their instances again)"
    )]
    Corrupt { path: String, cause: String },
    #[error("cannot open the store {path}: {cause}; give another path with --store embedded:PATH")]
    Open { path: String, cause: String },
    #[error("the store {store} cannot be used: {cause}")]
    Options { store: String, cause: String },
    /// The store did not answer in time. It is unknown whether a transaction was applied: it was, it was not, or it
    /// will be when a partition heals. A caller may repeat it only if it is idempotent and has a condition that a newer
    /// writer's change breaks (for a node session, that `alive/<node>` is unchanged); otherwise it must first read the
    /// state.
    #[error("the store is not available: {cause}; the sender of the change has to retry it")]
    Unavailable { cause: String },
    /// The store refused, and a retry would be refused too.
    #[error("the store refused the request: {cause}")]
    Refused { cause: String },
    #[error(
        "revision {requested} is compacted: the history begins at {first}; read the current state again"
    )]
    Compacted {
        requested: Revision,
        first: Revision,
    },
    #[error("revision {requested} is not reached yet: the store is at {now}")]
    Future { requested: Revision, now: Revision },
    #[error("lease {0} does not exist: it expired or was revoked")]
    LeaseNotFound(LeaseId),
    #[error("the value of {key} has {bytes} bytes; at most {max} are allowed")]
    ValueTooLarge {
        key: Arc<str>,
        bytes: usize,
        max: usize,
    },
    #[error("a key of {bytes} bytes; it must have 1 to {MAX_KEY_BYTES}")]
    KeyInvalid { bytes: usize },
    #[error("a transaction of {ops} operations; at most {MAX_TXN_OPS} are allowed")]
    TooManyOps { ops: usize },
    #[error(
        "the values of a transaction have {bytes} bytes; at most {MAX_TXN_BYTES} are allowed: split it"
    )]
    TxnTooLarge { bytes: usize },
    #[error("the transaction changes {0} twice")]
    DuplicateKey(Arc<str>),
    #[error("the store is closed")]
    Closed,
}

/// The return type of all methods of a store that wait.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Figures of an engine since it was opened, for `/metrics` and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Requested transactions, grants and revocations.
    pub requests: u64,
    /// Keys put or deleted.
    pub changes: u64,
    /// Durable commits; one commit may contain the changes of many requests.
    pub commits: u64,
    /// Calls that a server of the store failed or did not answer; after each, the next server was used.
    pub faults: u64,
    /// Syncs to the disk. This and the following figures are set only if the engine itself stores the data.
    pub fsyncs: u64,
    /// Leases that expired.
    pub leases_expired: u64,
    /// Leases that exist now.
    pub leases: u64,
    /// Keys that exist now.
    pub keys: u64,
}

/// A store; the invariants are in the module's documentation. One trait object serves the whole process.
pub trait Store: Send + Sync + 'static {
    /// A name for people: "embedded", "etcd".
    fn engine(&self) -> &'static str;

    /// The longest value that is accepted.
    fn max_value_bytes(&self) -> usize;

    /// Whether other processes may have the store open at the same time.
    fn is_shared(&self) -> bool {
        true
    }

    /// One key at the current revision.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>>;

    /// Keys with this prefix at a revision, or at the current one; the empty prefix means all.
    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range>;

    /// Like `range`, with empty values.
    fn range_keys<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range>;

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnResult>;

    fn grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId>;

    /// Renews the lease: it lives for another TTL from now.
    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Ends a lease and deletes its keys.
    fn revoke(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Changes of the keys with this prefix, from the revision `from` on (inclusive).
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Watch>;

    /// Waits until a part of the engine has ended without which the store cannot answer any more.
    fn ended(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn counters(&self) -> StoreCounters;

    /// Puts one key unconditionally.
    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> StoreFuture<'a, Revision> {
        let txn = Txn {
            then: vec![Op::put(key, value)],
            ..Txn::default()
        };
        Box::pin(async move { Ok(self.txn(txn).await?.revision) })
    }

    /// Deletes one key, if it exists.
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Revision> {
        let txn = Txn {
            then: vec![Op::delete(key)],
            ..Txn::default()
        };
        Box::pin(async move { Ok(self.txn(txn).await?.revision) })
    }
}
