//! The engine for any number of control planes: an etcd (3.5.8 or newer), accessed by a small client of our own. It
//! takes transactions, leases and reads, and returns etcd's answers and watches that survive the failure of a member.
//! This process keeps only what it needs to repeat requests: all state is in etcd.
//!
//! # How the invariants are kept
//! * **Revisions** are etcd's, counted over all its keys: writes under other prefixes raise them too. A watch therefore
//!   also reports how far it is (`Changes` without events), within half a second, or at once when this process learnt
//!   of a newer revision, so that no wait for a revision is endless.
//! * **Reads** are linearizable, whichever member answers. A long range is read in pages at the revision of the first.
//! * **Transactions** are one message. If the answer is lost (`StoreError::Unavailable`), it is unknown whether the
//!   transaction was applied, and it is never sent twice. [`StoreError::Unavailable`] describes what callers must do.
//! * **Watches** resume after the last complete revision, at the next member, and return `Compacted` if that revision
//!   is compacted. Every call requires a leader, so a member that has lost its leader (in a partition) is not used.
//! * **Leases** have whole seconds, rounded up. etcd supports none shorter than its election takes (2 s by default),
//!   and gives all leases a full TTL again when its leader changes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut as _, BytesMut};
use futures_util::stream;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use self::{
    api::Answer,
    client::{Again, Client},
    fault::Fault,
    keep_alives::KeepAlive,
    translate::{Space, id, lease, number, seconds},
    watching::Watching,
};
use super::{
    KeyValue, LeaseId, MAX_TXN_BYTES, Range, Revision, Store, StoreCounters, StoreError,
    StoreFuture, Txn, TxnResult, Watch, bounds,
};

mod api;
mod options;
mod translate;
mod fault;
mod client;
mod keep_alives;
mod assembly;
mod watching;

pub use options::{EtcdOptions, prefix, urls};

/// The longest value: one that fills a transaction.
const MAX_VALUE_BYTES: usize = MAX_TXN_BYTES;
/// The keys of a range's first page: even with the longest values they fit into one message.
const FIRST_PAGE: i64 = 128;
/// Further pages have about this many bytes …
const PAGE_BYTES: usize = 4 << 20;
/// … and at most this many keys.
const MAX_PAGE: i64 = 10_000;
/// The pause before a keep-alive is repeated after its stream broke.
const BEAT_PAUSE: Duration = Duration::from_millis(100);

/// A store in an etcd.
pub struct Etcd {
    /// Shared with the watches and the keep-alives.
    client: Arc<Client>,
    space: Space,
    keep_alives: mpsc::Sender<KeepAlive>,
    timeout: Duration,
    counters: RequestCounters,
}

#[derive(Default)]
struct RequestCounters {
    requests: AtomicU64,
    changes: AtomicU64,
    commits: AtomicU64,
}

impl Etcd {
    /// Reads the files that the options name. Does not connect yet: etcd may start later. Must run in a runtime.
    pub fn open(options: &EtcdOptions) -> Result<Self, StoreError> {
        let client = Arc::new(Client::new(options)?);
        Ok(Self {
            keep_alives: keep_alives::start(Arc::clone(&client)),
            client,
            space: Space::new(&options.prefix),
            timeout: options.timeout,
            counters: RequestCounters::default(),
        })
    }

    async fn request<M, A>(&self, path: &'static str, request: M, again: Again) -> Result<A, Fault>
    where
        M: prost::Message + Clone + Sync + 'static,
        A: Answer,
    {
        let answer = self.client.call(path, request, again).await;
        match answer {
            // For reads and other idempotent requests it does not matter whether the lost one was applied.
            Err(Fault::Unknown(text)) if again == Again::Harmless => Err(Fault::NotDone(text)),
            answer => answer,
        }
    }

    async fn read(
        &self,
        prefix: &str,
        at: Option<Revision>,
        keys_only: bool,
    ) -> Result<Range, Fault> {
        let (mut key, range_end) = self.space.range(prefix);
        let mut at = at;
        let mut items = Vec::new();
        let mut limit = if keys_only { MAX_PAGE } else { FIRST_PAGE };
        loop {
            let request = api::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit,
                revision: at.map_or(0, number),
                keys_only,
                ..api::RangeRequest::default()
            };
            let page: api::RangeResponse =
                self.request(api::RANGE, request, Again::Harmless).await?;
            let at_page = *at.get_or_insert(page.store_revision());
            let bytes: usize = page
                .kvs
                .iter()
                .map(|it| it.key.len() + it.value.len())
                .sum();
            let average = bytes / page.kvs.len().max(1) + 1;
            limit = i64::try_from(PAGE_BYTES / average)
                .unwrap_or(MAX_PAGE)
                .clamp(1, MAX_PAGE);
            if let Some(last) = page.kvs.last() {
                // The smallest key after it.
                let mut next = BytesMut::from(&*last.key);
                next.put_u8(0);
                key = next.freeze();
            }
            let more = page.more && !page.kvs.is_empty();
            items.extend(page.kvs.into_iter().filter_map(|kv| self.space.item(kv)));
            if !more {
                return Ok(Range {
                    revision: at_page,
                    items,
                });
            }
        }
    }

    async fn range_at(
        &self,
        prefix: &str,
        at: Option<Revision>,
        keys_only: bool,
    ) -> Result<Range, StoreError> {
        let fault = match self.read(prefix, at, keys_only).await {
            Ok(range) => return Ok(range),
            Err(fault) => fault,
        };
        match (fault, at) {
            (Fault::Future, Some(requested)) => Err(StoreError::Future {
                requested,
                now: self.now().await?,
            }),
            (Fault::Compacted, Some(requested)) => Err(self.compacted(prefix, requested).await),
            (fault, _) => Err(self.client.to_store_error(fault)),
        }
    }

    /// etcd's current revision.
    async fn now(&self) -> Result<Revision, StoreError> {
        let request = self.space.revision_only();
        let read = self.request(api::RANGE, request, Again::Harmless);
        let answer: api::RangeResponse = read
            .await
            .map_err(|fault| self.client.to_store_error(fault))?;
        Ok(answer.store_revision())
    }

    /// A range does not report where the history begins, but a watch does.
    async fn compacted(&self, prefix: &str, requested: Revision) -> StoreError {
        match self.watching(prefix, requested).await {
            Err(StoreError::Compacted { first, .. }) => StoreError::Compacted { requested, first },
            Err(error) => error,
            Ok(_) => StoreError::Compacted {
                requested,
                first: requested.next(),
            },
        }
    }

    fn watching(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<Watching, StoreError>> {
        let client = Arc::clone(&self.client);
        Watching::open(client, self.space.clone(), prefix, from, self.timeout)
    }

    async fn write(&self, txn: Txn) -> Result<TxnResult, StoreError> {
        count(&self.counters.requests, 1);
        bounds::check(&txn, MAX_VALUE_BYTES)?;
        let request = self.space.txn(&txn);
        let answer: api::TxnResponse = match self.request(api::TXN, request, Again::IfNotDone).await
        {
            Ok(answer) => answer,
            Err(Fault::NoLease) => return Err(lost_lease(&txn)),
            Err(fault) => return Err(self.client.to_store_error(fault)),
        };
        let changes = answer.responses.iter().map(changed).sum();
        count(&self.counters.changes, changes);
        count(&self.counters.commits, u64::from(changes > 0));
        Ok(TxnResult {
            succeeded: answer.succeeded,
            revision: answer.store_revision(),
        })
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        count(&self.counters.requests, 1);
        let request = api::LeaseGrantRequest {
            ttl: seconds(ttl),
            id: 0,
        };
        // If the answer is lost, the lease has no keys and expires.
        let grant = self.request(api::LEASE_GRANT, request, Again::Harmless);
        let answer: api::LeaseGrantResponse = grant
            .await
            .map_err(|fault| self.client.to_store_error(fault))?;
        let Some(lease) = lease(answer.id).filter(|_| answer.error.is_empty()) else {
            return Err(StoreError::Unavailable {
                cause: format!("etcd did not grant a lease: {}", answer.error),
            });
        };
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let end = Instant::now() + self.timeout;
        let mut last = Fault::NotDone("no member answered a keep-alive".to_owned());
        loop {
            let (answer, word) = oneshot::channel();
            let keep_alive = async {
                let keep_alive = KeepAlive { lease, answer };
                self.keep_alives
                    .send(keep_alive)
                    .await
                    .map_err(|_| StoreError::Closed)?;
                word.await.map_err(|_| StoreError::Closed)
            };
            match timeout_at(end, keep_alive).await {
                Ok(Ok(Ok(true))) => return Ok(()),
                Ok(Ok(Ok(false))) => return Err(StoreError::LeaseNotFound(lease)),
                Ok(Ok(Err(fault @ Fault::Refused(_)))) => {
                    return Err(self.client.to_store_error(fault));
                }
                Ok(Ok(Err(fault))) => last = fault,
                Ok(Err(closed)) => return Err(closed),
                Err(_) => {}
            }
            if Instant::now() + BEAT_PAUSE >= end {
                // Whether it was applied does not matter: callers repeat it.
                let last = match last {
                    Fault::Unknown(text) => Fault::NotDone(text),
                    last => last,
                };
                return Err(self.client.to_store_error(last));
            }
            tokio::time::sleep(BEAT_PAUSE).await;
        }
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        count(&self.counters.requests, 1);
        let request = api::LeaseRevokeRequest { id: id(lease) };
        let revoke = self.request(api::LEASE_REVOKE, request, Again::Harmless);
        let revoked: Result<api::LeaseRevokeResponse, _> = revoke.await;
        match revoked {
            Ok(_) => Ok(()),
            Err(Fault::NoLease) => Err(StoreError::LeaseNotFound(lease)),
            Err(fault) => Err(self.client.to_store_error(fault)),
        }
    }
}

impl Store for Etcd {
    fn engine(&self) -> &'static str {
        "etcd"
    }

    fn max_value_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
        Box::pin(async move {
            let request = api::RangeRequest {
                key: self.space.key(key),
                ..api::RangeRequest::default()
            };
            let read = self.request(api::RANGE, request, Again::Harmless);
            let answer: api::RangeResponse = read
                .await
                .map_err(|fault| self.client.to_store_error(fault))?;
            let found = answer.kvs.into_iter().next();
            Ok(found.and_then(|found| self.space.item(found)))
        })
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        Box::pin(self.range_at(prefix, at, false))
    }

    fn range_keys<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        Box::pin(self.range_at(prefix, at, true))
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnResult> {
        Box::pin(self.write(txn))
    }

    fn grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        Box::pin(self.grant_lease(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(self.keep_alive(lease))
    }

    fn revoke(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(self.end_lease(lease))
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Watch> {
        let opening = self.watching(prefix, from);
        Box::pin(async move { Ok(Watch::new(stream::unfold(opening.await?, Watching::step))) })
    }

    fn ended(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        // Without this task no lease is kept alive any more.
        Box::pin(self.keep_alives.closed())
    }

    fn counters(&self) -> StoreCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounters {
            requests: read(&self.counters.requests),
            changes: read(&self.counters.changes),
            commits: read(&self.counters.commits),
            faults: read(&self.client.faults),
            ..StoreCounters::default()
        }
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The number of keys that an operation of a transaction changed.
fn changed(response: &api::ResponseOp) -> u64 {
    match &response.response {
        Some(api::response_op::Response::ResponsePut(_)) => 1,
        Some(api::response_op::Response::ResponseDeleteRange(deleted)) => {
            deleted.deleted.unsigned_abs()
        }
        _ => 0,
    }
}

/// etcd does not report which lease is missing. This returns the first lease that the transaction uses.
fn lost_lease(txn: &Txn) -> StoreError {
    let mut ops = txn.then.iter().chain(&txn.otherwise);
    let lease = ops.find_map(|op| match op {
        super::Op::Put { lease, .. } => *lease,
        super::Op::Delete { .. } => None,
    });
    StoreError::LeaseNotFound(lease.unwrap_or(LeaseId(0)))
}
