//! The engine for a single control plane: one durable file (redb). Reads and watches are served from memory. A writer
//! thread makes all waiting changes durable with one commit and one sync and only then publishes them, so nobody sees a
//! change that a power failure could undo. The file is locked against other processes.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::stream;
use tokio::sync::{Semaphore, oneshot, watch};

use self::{
    file::File,
    writer::{Job, Queue, Request, Writer},
};
use super::{
    KeyValue, LeaseId, MAX_TXN_BYTES, Range, Revision, Store, StoreCounters, StoreError,
    StoreFuture, Txn, TxnResult, Watch, machine::Machine,
};

mod backend;
mod file;
mod writer;

/// The longest value: one that fills a transaction.
const MAX_VALUE_BYTES: usize = MAX_TXN_BYTES;
/// The most requests queued for the writer; further ones wait for a slot.
const QUEUE: usize = 8192;
/// The most revisions that a watch reads at a time.
const WATCH_CHUNK: usize = 256;

/// The store's location and the size of its history.
#[derive(Clone)]
pub struct EmbeddedOptions {
    pub path: PathBuf,
    /// The most revisions that watches and reads can go back; set by tests.
    pub max_history: Option<usize>,
    /// Another storage instead of the file: tests use one that fails and loses writes.
    pub(crate) disk: Option<Disk>,
}

/// Opens the storage under the store.
pub(crate) type Disk =
    Arc<dyn Fn() -> Result<Box<dyn redb::StorageBackend>, redb::DatabaseError> + Send + Sync>;

impl EmbeddedOptions {
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            max_history: None,
            disk: None,
        }
    }
}

/// The embedded store. Dropping it waits until the writer has finished all requests.
pub struct Embedded {
    shared: Arc<Shared>,
    queue: Option<Queue>,
    slots: Arc<Semaphore>,
    writer: Option<std::thread::JoinHandle<()>>,
    /// Closed when the writer's thread ends.
    ended: watch::Receiver<()>,
}

/// The state that readers and the writer share.
struct Shared {
    machine: Mutex<Machine>,
    /// The newest published revision; watches wait on it.
    published: watch::Sender<Revision>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    /// Opens the file, or creates it and its parent folders. Blocks: call it at process start.
    pub fn open(options: &EmbeddedOptions) -> Result<Self, StoreError> {
        let (file, saved) = File::open(options)?;
        let mut machine = Machine::new(saved, MAX_VALUE_BYTES, Instant::now());
        if let Some(max) = options.max_history {
            machine.set_max_history(max);
        }
        let published = watch::Sender::new(machine.history().published());
        let shared = Arc::new(Shared {
            machine: Mutex::new(machine),
            published,
        });
        let (queue, jobs) = writer::queue();
        let writer = Writer::new(Arc::clone(&shared), options.clone(), file, jobs);
        let thread = std::thread::Builder::new().name("heddle-store".to_owned());
        let (writes, ended) = watch::channel(());
        let writer = thread
            .spawn(move || {
                // Dropped when the thread ends, for any reason.
                let _writes = writes;
                writer.run();
            })
            .map_err(|error| StoreError::Open {
                path: options.path.display().to_string(),
                cause: format!("cannot start its writer thread: {error}"),
            })?;
        let slots = Arc::new(Semaphore::new(QUEUE));
        Ok(Self {
            shared,
            queue: Some(queue),
            slots,
            writer: Some(writer),
            ended,
        })
    }

    async fn request<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let slots = Arc::clone(&self.slots);
        let slot = slots
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue
            .send(Request {
                job: job(reply),
                slot,
            })
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had failed");
        }
    }
}

impl Store for Embedded {
    fn engine(&self) -> &'static str {
        "embedded"
    }

    fn max_value_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
        Box::pin(async move { Ok(self.shared.lock().get(key)) })
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        Box::pin(async move { self.shared.lock().range(prefix, at, false) })
    }

    fn range_keys<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        Box::pin(async move { self.shared.lock().range(prefix, at, true) })
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnResult> {
        Box::pin(self.request(|reply| Job::Txn(txn, reply)))
    }

    fn grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        Box::pin(self.request(move |reply| Job::Grant(ttl, reply)))
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.shared.lock().keep_alive(lease, Instant::now()) })
    }

    fn revoke(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(self.request(move |reply| Job::Revoke(lease, reply)))
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Watch> {
        let cursor = Cursor {
            // A weak reference and no sender, so that the watch ends when the store is closed.
            shared: Arc::downgrade(&self.shared),
            published: self.shared.published.subscribe(),
            prefix: prefix.to_owned(),
            next: from,
            ready: Vec::new().into_iter(),
            failed: false,
        };
        Box::pin(async move {
            // Reports at once if the start is compacted.
            self.shared.lock().history().watch(prefix, from, 0)?;
            Ok(Watch::new(stream::unfold(cursor, Cursor::step)))
        })
    }

    fn ended(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut ended = self.ended.clone();
        Box::pin(async move { while ended.changed().await.is_ok() {} })
    }

    fn counters(&self) -> StoreCounters {
        self.shared.lock().counters()
    }
}

/// One watch: a position in the shared history, so that a slow watcher needs no queue of its own.
struct Cursor {
    shared: std::sync::Weak<Shared>,
    published: watch::Receiver<Revision>,
    prefix: String,
    next: Revision,
    ready: std::vec::IntoIter<super::Changes>,
    failed: bool,
}

impl Cursor {
    async fn step(mut self) -> Option<(Result<super::Changes, StoreError>, Self)> {
        loop {
            if let Some(changes) = self.ready.next() {
                return Some((Ok(changes), self));
            }
            if self.failed {
                return None;
            }
            let next = self.next;
            self.published
                .wait_for(|published| *published >= next)
                .await
                .ok()?;
            let found =
                self.shared
                    .upgrade()?
                    .lock()
                    .history()
                    .watch(&self.prefix, self.next, WATCH_CHUNK);
            match found {
                Ok((changes, next)) => {
                    self.ready = changes.into_iter();
                    self.next = next;
                }
                Err(error) => {
                    self.failed = true;
                    return Some((Err(error), self));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
