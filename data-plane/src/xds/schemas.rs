//! Descriptors of the mesh, by hash: asked of the control plane when somebody wants to see them, then kept within a
//! bound. Hashes come in, raw descriptor sets go out. They never refuse or route a call.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// Kept at most; the oldest go first.
const MAX_TOTAL: usize = 128 * 1024 * 1024;
/// Questions that wait for the stream.
const MAX_WAITING: usize = 1024;
/// One question's wait.
const WAIT: Duration = Duration::from_secs(3);

/// One question to the stream's task.
pub struct Wanted {
    pub sha256: String,
    pub answer: oneshot::Sender<Option<Bytes>>,
}

/// Clones are one.
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
    /// The receiver is the stream's.
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

    /// The descriptors; `None` if nobody has them now.
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
