//! Descriptors of the mesh, by hash: requested from the control plane when somebody wants to see them, then cached
//! within a bound. Calls and routing do not depend on them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// The size of the cache, in bytes; the oldest entries are dropped first.
const MAX_TOTAL: usize = 128 * 1024 * 1024;
/// The most requests that wait for the stream.
const MAX_WAITING: usize = 1024;
/// The longest wait for one request.
const WAIT: Duration = Duration::from_secs(3);

/// One request to the stream's task.
pub struct Wanted {
    pub sha256: String,
    pub answer: oneshot::Sender<Option<Bytes>>,
}

/// The cache. Clones share it.
#[derive(Clone)]
pub struct Schemas {
    ask: mpsc::Sender<Wanted>,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    by_hash: HashMap<String, Bytes>,
    order: VecDeque<String>,
    bytes: usize,
}

impl Schemas {
    /// The stream's task takes the receiver.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Wanted>) {
        let (ask, wanted) = mpsc::channel(MAX_WAITING);
        (
            Self {
                ask,
                cache: Arc::default(),
            },
            wanted,
        )
    }

    /// The descriptors; `None` if they are not available now.
    pub async fn get(&self, sha256: &str) -> Option<Bytes> {
        if let Some(bytes) = self.lock().by_hash.get(sha256) {
            return Some(bytes.clone());
        }
        let (answer, answered) = oneshot::channel();
        self.ask
            .try_send(Wanted {
                sha256: sha256.to_owned(),
                answer,
            })
            .ok()?;
        let bytes = tokio::time::timeout(WAIT, answered).await.ok()?.ok()??;
        self.put(sha256, bytes.clone());
        Some(bytes)
    }

    fn put(&self, sha256: &str, bytes: Bytes) {
        let mut cache = self.lock();
        cache.bytes += bytes.len();
        if let Some(old) = cache.by_hash.insert(sha256.to_owned(), bytes) {
            cache.bytes -= old.len();
        } else {
            cache.order.push_back(sha256.to_owned());
        }
        while cache.bytes > MAX_TOTAL
            && let Some(oldest) = cache.order.pop_front()
        {
            if let Some(old) = cache.by_hash.remove(&oldest) {
                cache.bytes -= old.len();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
