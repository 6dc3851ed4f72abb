//! The numbers of load reports: attempts of this node's callers per service and locality of its endpoints. A worker
//! writes them; the control runtime reads them and remembers what it has reported. Names of services come from the
//! table, never from callers; policy and balancing do not read this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::counters::bump;

/// The attempts of one worker on endpoints of one service in one locality.
#[derive(Debug)]
pub struct LocalityLoad {
    /// Full name.
    pub service: Arc<str>,
    /// As given by its node; may be empty.
    pub region: Arc<str>,
    /// As given by its node; may be empty.
    pub zone: Arc<str>,
    now: Numbers,
    /// What has been reported of it; written only by the control runtime.
    taken: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    issued: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    latency_us: AtomicU64,
}

/// The load since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Attempts that began.
    pub issued: u64,
    /// Attempts that ended without an error ([`heddle_proto::status_code::is_error`]).
    pub succeeded: u64,
    /// Attempts that ended with an error, or without any status.
    pub failed: u64,
    /// Attempts in progress now.
    pub in_progress: u64,
    /// Sum of the durations of the ended attempts, from sending to end, in microseconds.
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

    /// Whether no attempt began, ended or is in progress.
    #[must_use]
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}

impl LocalityLoad {
    pub(crate) fn new(service: &str, region: &str, zone: &str) -> Self {
        Self {
            // Copies, since only the worker may count references to its own.
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

    /// Attempts in progress.
    #[must_use]
    pub fn in_progress(&self) -> u64 {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        // Ended attempts are read first, since one may begin and end between the reads.
        let ended = read(&self.now.succeeded).wrapping_add(read(&self.now.failed));
        read(&self.now.issued).saturating_sub(ended)
    }

    /// The load since the last call; for a single reader.
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

/// Takes and sums up the loads of all workers for services for which `of` is true; idle ones are left out. At most
/// `most` services; the others are left for a later call.
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

/// This node's use of a service since the start: shows whether the service is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Ended calls.
    pub ended: u64,
    /// Attempts in progress.
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

        // Attempts in progress are reported again, ended ones are not.
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
