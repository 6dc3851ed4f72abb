//! Reports the number of calls in flight on an endpoint to the control side until there are none, since an instance
//! that leaves is stopped only then. Takes the endpoint's uid, gives counts. What the calls are does not belong here.

use tokio::sync::watch;

use super::turn::Worker;

/// One endpoint for whose last call somebody waits.
#[derive(Debug)]
pub(crate) struct CallsWatch {
    pub(crate) uid: u64,
    /// The calls of this worker; `None` until it has counted them.
    pub(crate) count: watch::Sender<Option<usize>>,
}

impl Worker {
    /// Called at the end of a turn. A watch ends with the last call, or when nobody waits any more.
    pub(super) fn report_calls_watched(&mut self) {
        let exchange = &self.exchange;
        self.calls_watched.retain(|watch| {
            let now = exchange.calls_on(watch.uid);
            watch.count.send_if_modified(|count| {
                let changed = *count != Some(now);
                *count = Some(now);
                changed
            });
            now > 0 && !watch.count.is_closed()
        });
    }
}

/// The calls in flight on one endpoint, of all workers.
#[derive(Debug)]
pub struct CallsInFlight {
    counts: Vec<watch::Receiver<Option<usize>>>,
}

impl CallsInFlight {
    pub(crate) fn new(counts: Vec<watch::Receiver<Option<usize>>>) -> Self {
        Self { counts }
    }

    /// Returns when no worker has a call on it. Only for an endpoint that drains or is in no table any more; otherwise
    /// new calls may follow.
    pub async fn ended(&mut self) {
        for count in &mut self.counts {
            // A worker whose thread has ended has no calls.
            let _ = count.wait_for(|count| *count == Some(0)).await;
        }
    }

    /// Their number, as far as the workers have reported it.
    #[must_use]
    pub fn count(&self) -> usize {
        let counts = self.counts.iter();
        counts.map(|count| count.borrow().unwrap_or(0)).sum()
    }
}
