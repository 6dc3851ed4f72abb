//! What callers on this node do to each service, by the locality of its endpoints: the numbers of a load report. One
//! worker writes, the control runtime reads and remembers what it has taken. Names of services come from the table,
//! never from callers; no policy and no balancing reads this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::counters::bump;

/// The attempts of one worker at the endpoints of one service in one locality.
#[derive(Debug)]
pub struct LocalityLoad {
    /// Full name.
    pub service: Arc<str>,
    /// As its node says; may be empty.
    pub region: Arc<str>,
    /// As its node says; may be empty.
    pub zone: Arc<str>,
    now: Numbers,
    /// What reports have had of it: written by the control runtime only.
    taken: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    issued: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    latency_us: AtomicU64,
}

/// What happened since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Attempts begun.
    pub issued: u64,
    /// Ended without an error ([`heddle_proto::status_code::is_error`]).
    pub succeeded: u64,
    /// Ended with an error, or without any status.
    pub failed: u64,
    /// Begun and not ended, now.
    pub in_progress: u64,
    /// Of those that ended, from being sent to the end, in microseconds.
    pub latency_us: u64,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.issued += other.issued;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.in_progress += other.in_progress;
        self.latency_us += other.latency_us;
    }

    /// Nothing began, ended or goes on.
    #[must_use]
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}

impl LocalityLoad {
    pub(crate) fn new(service: &str, region: &str, zone: &str) -> Self {
        Self {
            // Copies: the worker's own are counted on its cache line alone.
            service: service.into(),
            region: region.into(),
            zone: zone.into(),
            now: Numbers::default(),
            taken: Numbers::default(),
        }
    }

    pub(crate) fn begin(&self) {
        bump(&self.now.issued, 1);
    }

    pub(crate) fn end(&self, ok: bool, took: Duration) {
        bump(
            if ok {
                &self.now.succeeded
            } else {
                &self.now.failed
            },
            1,
        );
        bump(
            &self.now.latency_us,
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        );
    }

    /// Begun and not ended.
    #[must_use]
    pub fn in_progress(&self) -> u64 {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        // What ended is read first: something may begin and end between the reads.
        let ended = read(&self.now.succeeded).wrapping_add(read(&self.now.failed));
        read(&self.now.issued).saturating_sub(ended)
    }

    /// What happened since the last time; for one reader.
    pub fn take(&self) -> Load {
        let fresh = |of: fn(&Numbers) -> &AtomicU64| {
            let now = of(&self.now).load(Ordering::Relaxed);
            now.wrapping_sub(of(&self.taken).swap(now, Ordering::Relaxed))
        };
        let in_progress = self.in_progress();
        Load {
            succeeded: fresh(|n| &n.succeeded),
            failed: fresh(|n| &n.failed),
            latency_us: fresh(|n| &n.latency_us),
            issued: fresh(|n| &n.issued),
            in_progress,
        }
    }
}

/// A locality: region and zone.
pub type Locality = (Arc<str>, Arc<str>);

/// Takes what all workers have of the services that `of` names, summed; what was idle is left out. Services over `most`
/// wait for a later time.
pub fn take_all(
    loads: &[Arc<LocalityLoad>],
    most: usize,
    of: impl Fn(&str) -> bool,
) -> BTreeMap<Arc<str>, BTreeMap<Locality, Load>> {
    let mut sum: BTreeMap<Arc<str>, BTreeMap<Locality, Load>> = BTreeMap::new();
    for load in loads.iter().filter(|load| of(&load.service)) {
        if sum.len() >= most && !sum.contains_key(&load.service) {
            continue;
        }
        let fresh = load.take();
        if fresh.is_idle() {
            continue;
        }
        let place = (Arc::clone(&load.region), Arc::clone(&load.zone));
        let service = sum.entry(Arc::clone(&load.service)).or_default();
        service.entry(place).or_default().add(fresh);
    }
    sum
}

/// How much a service was called by this node, ever: what tells that it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Calls that have ended.
    pub ended: u64,
    /// Attempts that have not.
    pub in_progress: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_have_everything_once_over_all_workers() {
        let workers = ["eu", "eu", "us"]
            .map(|region| Arc::new(LocalityLoad::new("users.default", region, "")));
        for load in &workers {
            for _ in 0..3 {
                load.begin();
            }
            load.end(true, Duration::from_millis(2));
            load.end(false, Duration::from_millis(3));
        }
        let one = Load {
            issued: 3,
            succeeded: 1,
            failed: 1,
            in_progress: 1,
            latency_us: 5000,
        };
        let mut two = one;
        two.add(one);
        assert_eq!(take_all(&workers, 9, |_| false), BTreeMap::new());
        assert_eq!(take_all(&workers, 0, |_| true), BTreeMap::new());
        let taken = take_all(&workers, 9, |name| name == "users.default");
        let by: Vec<_> = taken["users.default"]
            .iter()
            .map(|((r, _), l)| (&**r, *l))
            .collect();
        assert_eq!(by, [("eu", two), ("us", one)]);

        // What goes on is told again, what has been told is not.
        let again = take_all(&workers, 9, |_| true);
        let going = Load {
            in_progress: 2,
            ..Load::default()
        };
        assert_eq!(again["users.default"][&("eu".into(), "".into())], going);
        for load in &workers {
            load.end(true, Duration::ZERO);
        }
        let last = take_all(&workers, 9, |_| true);
        let ended = Load {
            succeeded: 2,
            ..Load::default()
        };
        assert_eq!(last["users.default"][&("eu".into(), "".into())], ended);
        assert_eq!(take_all(&workers, 9, |_| true), BTreeMap::new());
    }
}
