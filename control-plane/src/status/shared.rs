//! One computation at a time for a question that any number of clients may ask: those that ask while an answer is being
//! computed share the next one. An answer is never older than its question, and repeated questions take at most half
//! of one core. The kind of question is not known here.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::Instant,
};

/// After a computation the next one waits for as long as that took, but at most for this long.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The answers to one question.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// Locked while an answer is computed. Callers wait in the order in which they asked.
    last: Arc<Mutex<Last<T>>>,
    /// Number of computations that have begun.
    begun: Arc<AtomicU64>,
    /// Callers that have no answer yet.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Last<T> {
    /// The last answer and the number of its computation; `None` once all that waited for it have it.
    answer: Option<(u64, Arc<T>)>,
    /// When the next computation may begin.
    next: Instant,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            last: Arc::new(Mutex::new(Last {
                answer: None,
                next: Instant::now(),
            })),
            begun: Arc::default(),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// The answer of the first computation that begins after this call: another caller's, or that of `compute`. It is
    /// computed to its end even if this caller leaves. `None` if it panicked.
    pub(super) async fn get<F>(&self, compute: impl FnOnce() -> F) -> Option<Arc<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let place = Place::take(&self.waiting);
        let begun_before = self.begun.load(Ordering::SeqCst);
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((_, answer)) = last
            .answer
            .as_ref()
            .filter(|(begun, _)| *begun > begun_before)
        {
            let answer = Arc::clone(answer);
            if place.is_last() {
                last.answer = None;
            }
            return Some(answer);
        }
        if last.next > Instant::now() {
            tokio::time::sleep_until(last.next).await;
        }
        let begun = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let computed = tokio::spawn(finish(last, begun, compute())).await.ok()?;
        if place.is_last()
            && let Ok(mut last) = self.last.try_lock()
        {
            last.answer = None;
        }
        Some(computed)
    }
}

async fn finish<T>(
    mut last: OwnedMutexGuard<Last<T>>,
    begun: u64,
    compute: impl Future<Output = T>,
) -> Arc<T> {
    let start = Instant::now();
    let answer = Arc::new(compute.await);
    let took = start.elapsed();
    last.next = Instant::now() + took.min(LONGEST_PAUSE);
    last.answer = Some((begun, Arc::clone(&answer)));
    answer
}

/// One of the callers that wait.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }

    fn is_last(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 1
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    /// Issue 10, D1.
    #[tokio::test(start_paused = true)]
    async fn those_that_ask_meanwhile_share_one_answer_that_is_newer_than_their_question() {
        let (shared, state) = (Shared::default(), Arc::new(AtomicU64::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let ask = || {
            shared.get(|| {
                let (state, gate) = (Arc::clone(&state), Arc::clone(&gate));
                async move {
                    let read = state.load(Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    read
                }
            })
        };
        let mut first = Box::pin(ask());
        assert!(futures_util::poll!(&mut first).is_pending());
        tokio::task::yield_now().await;
        // They ask after the first computation has read the state, so its answer is too old for them.
        state.store(1, Ordering::SeqCst);
        let mut others: Vec<_> = (0..500).map(|_| Box::pin(ask())).collect();
        for other in &mut others {
            assert!(futures_util::poll!(other).is_pending());
        }
        gate.add_permits(100);
        assert_eq!(*first.await.unwrap(), 0);
        let answers = join_all(others).await;
        assert!(answers.iter().all(|answer| **answer.as_ref().unwrap() == 1));
        assert_eq!(shared.begun.load(Ordering::SeqCst), 2);
        assert!(shared.last.lock().await.answer.is_none(), "nothing is kept");
        state.store(2, Ordering::SeqCst);
        assert_eq!(*ask().await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_questions_take_half_of_the_time() {
        let shared = Shared::default();
        let start = Instant::now();
        for _ in 0..5 {
            let slow = || tokio::time::sleep(Duration::from_millis(10));
            shared.get(slow).await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::from_millis(90));
    }

    #[tokio::test]
    async fn a_caller_that_leaves_or_panics_stops_nobody() {
        let shared = Shared::default();
        let (release, released) = oneshot::channel();
        let mut leaves = Box::pin(shared.get(|| async { released.await.unwrap() }));
        assert!(futures_util::poll!(&mut leaves).is_pending());
        drop(leaves);
        release.send(1).unwrap();
        assert_eq!(shared.get(|| async { panic!("computing") }).await, None);
        assert_eq!(shared.get(|| async { 2 }).await.as_deref(), Some(&2));
    }
}
