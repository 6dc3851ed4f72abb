//! Detects whether this replica lags: other replicas have seen a revision that has not arrived here for some time. The
//! revisions of other replicas are reported to this module; it does not query them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::Membership;
use crate::{registry::view::View, store::Revision};

/// How long a revision that another replica has seen may take to arrive here.
const LAG_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the report of another replica is valid. After that this replica serves its old state: if no replica reports
/// a newer revision, old state is better than none.
const VALID_FOR: Duration = Duration::from_secs(5);

/// This replica lags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// The revision of this replica's view when the lag was detected.
    pub own: Revision,
    /// The revision that the other replica has seen.
    pub seen: Revision,
    /// The name of the other replica.
    pub by: Arc<str>,
}

/// The revisions that other replicas reported.
#[derive(Debug, Default)]
struct PeerRevisions {
    /// The revision that is missing here, and since when.
    due: Option<(Revision, Instant)>,
    /// The highest reported revision, by which replica, and when.
    last: Option<(Revision, Arc<str>, Instant)>,
}

impl PeerRevisions {
    fn on_revision(&mut self, by: &Arc<str>, seen: Revision, own: Revision, now: Instant) {
        if seen <= own {
            return;
        }
        self.due.get_or_insert((seen, now));
        let newest = |last: &(Revision, _, Instant)| seen >= last.0 || now >= last.2 + VALID_FOR;
        if self.last.as_ref().is_none_or(newest) {
            self.last = Some((seen, Arc::clone(by), now));
        }
    }

    fn evaluate(&mut self, own: Revision, now: Instant) -> Option<Lag> {
        let counts = |last: &(Revision, _, Instant)| last.0 > own && now < last.2 + VALID_FOR;
        self.last = self.last.take().filter(counts);
        let Some((seen, by, at)) = &self.last else {
            self.due = None;
            return None;
        };
        if self.due.is_none_or(|(due, _)| due <= own) {
            self.due = Some((*seen, *at));
        }
        let since = self.due.map_or(*at, |(_, since)| since);
        (now >= since + LAG_TIMEOUT).then(|| Lag {
            own,
            seen: *seen,
            by: Arc::clone(by),
        })
    }
}

/// The state of lag detection.
#[derive(Debug, Default)]
pub(super) struct LagState {
    peers: Mutex<PeerRevisions>,
    lag: watch::Sender<Option<Lag>>,
    check: Notify,
}

impl LagState {
    fn peers(&self) -> MutexGuard<'_, PeerRevisions> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// This replica's lag, and each change of it.
    #[must_use]
    pub fn lag(&self) -> watch::Receiver<Option<Lag>> {
        self.lag_state().lag.subscribe()
    }

    /// Reports the revision that another replica has seen.
    pub(crate) fn on_peer_revision(&self, by: &Arc<str>, seen: Revision) {
        let own = self.registry().read(View::revision);
        self.lag_state()
            .peers()
            .on_revision(by, seen, own, Instant::now());
    }

    /// Re-evaluates the lag, after the view has changed or time has passed.
    pub(crate) fn update_lag(&self) {
        let own = self.registry().read(View::revision);
        // Locked until the end, so that the later of two concurrent evaluations wins.
        let mut peers = self.lag_state().peers();
        let now = peers.evaluate(own, Instant::now());
        self.lag_state().lag.send_if_modified(|before| {
            match (&*before, &now) {
                (None, None) => return false,
                (None, Some(Lag { own, seen, by })) => tracing::warn!(
                    event = "replica-lags", %own, %seen, %by,
                    "this replica gets no updates from the store but another one does: xDS \
                     clients are sent there"
                ),
                (Some(_), None) => tracing::info!(
                    event = "replica-caught-up", %own,
                    "this replica serves xDS clients again: it has caught up, or the other \
                     replicas do not answer"
                ),
                (Some(_), Some(_)) => {}
            }
            *before = now;
            true
        });
    }

    /// Re-evaluates the lag at each change of the view, forever.
    pub(crate) async fn update_lag_at_changes(&self) {
        let mut revisions = self.registry().revisions();
        // The registry owns the sender: this cannot fail.
        while revisions.changed().await.is_ok() {
            self.update_lag();
        }
    }

    /// There may be a revision newer than the view's: requests that other replicas be asked now.
    pub(crate) fn request_check(&self) {
        self.lag_state().check.notify_one();
    }

    pub(crate) async fn check_requested(&self) {
        self.lag_state().check.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Run {
        peers: PeerRevisions,
        start: Instant,
    }

    impl Run {
        fn new() -> Self {
            Self {
                peers: PeerRevisions::default(),
                start: Instant::now(),
            }
        }

        fn on_revision(&mut self, at: u32, by: &str, seen: u64, own: u64) {
            let now = self.start + SECOND * at;
            let (seen, own) = (Revision(seen), Revision(own));
            self.peers.on_revision(&by.into(), seen, own, now);
        }

        fn lags(&mut self, at: u32, own: u64) -> Option<u64> {
            let lag = self.peers.evaluate(Revision(own), self.start + SECOND * at);
            lag.map(|lag| lag.seen.0)
        }
    }

    #[test]
    fn who_misses_a_revision_for_two_seconds_lags_until_it_has_come() {
        let mut run = Run::new();
        run.on_revision(0, "r2", 7, 5);
        assert_eq!(run.lags(1, 5), None, "it may be on its way");
        run.on_revision(1, "r2", 8, 5);
        assert_eq!(run.lags(2, 5), Some(8));
        run.on_revision(3, "r2", 8, 5);
        assert_eq!(run.lags(4, 8), None);
        assert_eq!(run.lags(9, 8), None);
    }

    #[test]
    fn who_is_always_a_little_late_does_not_lag() {
        let mut run = Run::new();
        for second in 0..20 {
            let newest = u64::from(second) + 10;
            run.on_revision(second, "r2", newest, newest - 2);
            assert_eq!(run.lags(second, newest - 2), None);
        }
    }

    #[test]
    fn the_one_that_knows_most_counts() {
        let mut run = Run::new();
        run.on_revision(0, "r2", 8, 5);
        run.on_revision(1, "r3", 6, 5);
        assert_eq!(run.lags(2, 5), Some(8));
        assert_eq!(run.lags(3, 6), Some(8), "it has not caught up with r2");
    }

    #[test]
    fn where_nobody_knows_more_it_does_not_lag() {
        let mut run = Run::new();
        run.on_revision(0, "r2", 5, 5);
        run.on_revision(0, "r3", 4, 5);
        assert_eq!(run.lags(3, 5), None);
    }

    #[test]
    fn when_the_others_fall_silent_it_serves_again() {
        let mut run = Run::new();
        run.on_revision(0, "r2", 7, 5);
        assert_eq!(run.lags(4, 5), Some(7));
        assert_eq!(run.lags(5, 5), None);
        run.on_revision(9, "r2", 7, 5);
        assert_eq!(run.lags(10, 5), None, "counted anew");
        assert_eq!(run.lags(11, 5), Some(7));
    }
}
