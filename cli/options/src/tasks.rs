//! Background tasks whose end must not go unnoticed. Every unexpected end, by return or by panic, is logged as an error
//! and counted. A task that can be restarted is; for one that cannot, the process is stopped, because a restart is
//! better than a process that silently lacks a part. What a task does is not known here.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

/// Pause before a restart, so that a task that ends at once does not take the whole CPU.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The tasks of one process. Clones share them. A task returns `None` if it was stopped by its token, as
/// `CancellationToken::run_until_cancelled_owned` does.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By name; the names are constants of the program.
    ended: Mutex<BTreeMap<&'static str, u64>>,
    failed: watch::Sender<Option<&'static str>>,
}

impl Tasks {
    /// Runs a task that is essential for the process and cannot be restarted.
    pub fn vital(
        &self,
        name: &'static str,
        work: impl Future<Output = Option<()>> + Send + 'static,
    ) {
        self.count(name, 0);
        let tasks = self.clone();
        tokio::spawn(async move {
            if tasks.ends(name, "this process stops", work).await {
                tasks.0.failed.send_modify(|first| {
                    first.get_or_insert(name);
                });
            }
        });
    }

    /// Runs a task that is restarted until the process stops; `begin` makes it anew from the current state.
    pub fn restarted<F>(&self, name: &'static str, mut begin: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        self.count(name, 0);
        let tasks = self.clone();
        tokio::spawn(async move {
            while tasks.ends(name, "it is restarted", begin()).await {
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        });
    }

    /// Waits until a vital task has ended. Returns its name.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.0.failed.subscribe();
        let first = failed.wait_for(Option::is_some).await;
        // The sender lives in `self`: the wait cannot fail.
        first.ok().and_then(|name| *name).unwrap_or_default()
    }

    /// How often each task has ended unexpectedly, by name.
    #[must_use]
    pub fn ended(&self) -> Vec<(&'static str, u64)> {
        let ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().map(|(name, count)| (*name, *count)).collect()
    }

    /// Runs a task to its end. True if the end was unexpected.
    async fn ends(
        &self,
        name: &'static str,
        then: &str,
        work: impl Future<Output = Option<()>> + Send + 'static,
    ) -> bool {
        let why = match tokio::spawn(work).await {
            Ok(None) => return false,
            Ok(Some(())) => "it returned".to_owned(),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => format!("it panicked: {}", panic_message(&*panic)),
                // The runtime is shut down.
                Err(_) => return false,
            },
        };
        self.count(name, 1);
        tracing::error!(
            event = "task-ended",
            task = name,
            why,
            "a background task ended unexpectedly, which is a bug in Heddle; {then}"
        );
        true
    }

    fn count(&self, name: &'static str, more: u64) {
        let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let count = ended.entry(name).or_default();
        *count = count.saturating_add(more);
    }
}

/// The message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    async fn within<T>(future: impl Future<Output = T>) -> T {
        let done = tokio::time::timeout(Duration::from_secs(60), future).await;
        done.expect("60 s have passed")
    }

    /// Issue 10, D2.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_is_counted_and_restarted_until_the_process_stops() {
        let tasks = Tasks::default();
        let begun = Arc::new(AtomicU64::new(0));
        let (done, mut all) = tokio::sync::mpsc::channel(1);
        tasks.restarted("follower", {
            let begun = Arc::clone(&begun);
            move || {
                let (nth, done) = (begun.fetch_add(1, Ordering::Relaxed), done.clone());
                async move {
                    match nth {
                        0 => Some(()),
                        1 => panic!("a test's panic"),
                        _ => {
                            let _ = done.send(()).await;
                            None
                        }
                    }
                }
            }
        });
        assert_eq!(within(all.recv()).await, Some(()));
        assert_eq!(within(all.recv()).await, None, "nothing of it is left");
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert_eq!(tasks.ended(), [("follower", 2)]);
    }

    /// Issue 10, D2.
    #[tokio::test(start_paused = true)]
    async fn the_vital_task_that_ended_is_reported() {
        let tasks = Tasks::default();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        tasks.vital("quiet", async { None });
        tasks.vital("publisher", async {
            let _ = ended.await;
            panic!("a test's panic");
        });
        let early = tokio::time::timeout(RESTART_PAUSE, tasks.failed()).await;
        assert!(early.is_err(), "{early:?}");
        drop(end);
        assert_eq!(within(tasks.failed()).await, "publisher");
        assert_eq!(tasks.ended(), [("publisher", 1), ("quiet", 0)]);
    }
}
