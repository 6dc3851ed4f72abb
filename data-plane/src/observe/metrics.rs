//! One worker's series by service, method, status and reason. The worker's thread records outcomes; the control runtime
//! reads the same atomics. A lock is taken only to create a series, never per call.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heddle_proto::Reason;
use rustc_hash::FxHashMap;

use super::counters::{Counters, bump};
use super::load::{LocalityLoad, Use};
use super::outcome::Outcome;
use crate::caller::Role;

/// Upper bounds of the latency buckets in microseconds; the last bucket has none.
pub const BUCKETS_US: [u64; 16] = [
    250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 125_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000, 60_000_000,
];
/// gRPC statuses 0 to 16.
pub const STATUSES: usize = 17;
/// Methods counted by name per service; further ones are `other`. HTTP/2 does not limit method names and unknown
/// methods are forwarded, so a name is added only when a call has shown that the method exists.
pub const MAX_METHODS: usize = 256;
/// Services counted by name per worker; further ones are `other`.
const MAX_SERVICES: usize = 20_000;
/// Statuses that a call to a method that does not exist can also have: CANCELLED (by its caller), DEADLINE_EXCEEDED,
/// PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED.
const WITHOUT_METHOD: [u8; 5] = [1, 4, 7, 12, 16];

/// The calls of one (role, service, method) on one worker.
#[derive(Debug)]
pub struct Series {
    /// The listener.
    pub role: Role,
    /// Full name.
    pub service: Arc<str>,
    /// `package.Service/Method` or `other`.
    pub method: Arc<str>,
    /// By gRPC status.
    pub status: [AtomicU64; STATUSES],
    /// By reason, in the order of `Reason::ALL`.
    pub reasons: [AtomicU64; Reason::ALL.len()],
    /// Not cumulative.
    pub buckets: [AtomicU64; BUCKETS_US.len() + 1],
    /// Sum of all durations in microseconds.
    pub sum_us: AtomicU64,
    /// Attempts sent upstream.
    pub attempts: AtomicU64,
}

impl Series {
    fn new(role: Role, service: &str, method: &str) -> Self {
        Self {
            role,
            service: service.into(),
            method: method.into(),
            status: [const { AtomicU64::new(0) }; STATUSES],
            reasons: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            buckets: [const { AtomicU64::new(0) }; BUCKETS_US.len() + 1],
            sum_us: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
        }
    }

    fn record(&self, outcome: &Outcome<'_>) {
        // UNKNOWN if it is not a gRPC status.
        let status = usize::from(outcome.status);
        let status = if status < STATUSES { status } else { 2 };
        if let Some(count) = self.status.get(status) {
            bump(count, 1);
        }
        if let Some(reason) = outcome.reason {
            let index = Reason::ALL.iter().position(|r| *r == reason);
            if let Some(count) = index.and_then(|i| self.reasons.get(i)) {
                bump(count, 1);
            }
        }
        let us = micros(outcome.duration);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.buckets.get(bucket) {
            bump(count, 1);
        }
        bump(&self.sum_us, us);
        bump(&self.attempts, u64::from(outcome.attempts));
    }
}

/// An instance that a worker has ejected, so that only probes are sent to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EjectedInstance {
    /// Full name.
    pub service: Arc<str>,
    /// The endpoint's uid.
    pub uid: u64,
}

/// What the control runtime can see of one worker.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    /// Written only when an instance is ejected or returns.
    ejected: Mutex<Vec<EjectedInstance>>,
    series: Mutex<Vec<Arc<Series>>>,
    loads: Mutex<Vec<Arc<LocalityLoad>>>,
    /// Plain counters.
    pub counters: Counters,
    /// Calls that have not ended.
    pub calls: AtomicUsize,
    /// Open connections from callers and proxies.
    pub downstream: AtomicUsize,
    /// Open connections to instances and proxies.
    pub upstream: AtomicUsize,
    /// Calls waiting for a stream to an instance or node.
    pub pending: AtomicUsize,
    /// Calls waiting for endpoints or for the first table.
    pub waiting: AtomicUsize,
    /// Bytes received and not forwarded yet.
    pub buffered_bytes: AtomicUsize,
}

impl WorkerMetrics {
    /// All series.
    #[must_use]
    pub fn series(&self) -> Vec<Arc<Series>> {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn register(&self, series: &Arc<Series>) {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(series));
    }

    /// The loads of all services and localities.
    #[must_use]
    pub fn loads(&self) -> Vec<Arc<LocalityLoad>> {
        self.loads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The load of one locality of a service, created at its first attempt.
    pub(crate) fn load(&self, service: &str, region: &str, zone: &str) -> Arc<LocalityLoad> {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |l: &&Arc<LocalityLoad>| (&*l.service, &*l.region, &*l.zone) == (service, region, zone);
        if let Some(known) = loads.iter().find(same) {
            return Arc::clone(known);
        }
        let load = Arc::new(LocalityLoad::new(service, region, zone));
        loads.push(Arc::clone(&load));
        load
    }

    /// The instances that the worker has ejected.
    #[must_use]
    pub fn ejected(&self) -> Vec<EjectedInstance> {
        self.ejected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_ejected(&self, ejected: Vec<EjectedInstance>) {
        *self.ejected.lock().unwrap_or_else(PoisonError::into_inner) = ejected;
    }

    /// Adds this worker's use of each service.
    pub fn add_use(&self, sum: &mut HashMap<Arc<str>, Use>) {
        for series in self.series() {
            if series.role == Role::Outbound {
                let ended: u64 = series
                    .status
                    .iter()
                    .map(|n| n.load(Ordering::Relaxed))
                    .sum();
                sum.entry(Arc::clone(&series.service)).or_default().ended += ended;
            }
        }
        for load in self.loads() {
            let of = sum.entry(Arc::clone(&load.service)).or_default();
            of.in_progress += load.in_progress();
        }
    }

    /// Sets a gauge.
    pub fn set(gauge: &AtomicUsize, value: usize) {
        gauge.store(value, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct ServiceSeries {
    methods: FxHashMap<Box<[u8]>, Arc<Series>>,
    other: Option<Arc<Series>>,
}

/// The worker's index into its series.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<WorkerMetrics>,
    services: [FxHashMap<Box<str>, ServiceSeries>; 2],
}

impl Recorder {
    /// Records into `shared`.
    #[must_use]
    pub fn new(shared: Arc<WorkerMetrics>) -> Self {
        Self {
            shared,
            services: [FxHashMap::default(), FxHashMap::default()],
        }
    }

    /// Drops the counters of calls to these services.
    pub fn forget(&mut self, services: &HashSet<Arc<str>>) {
        let named = |name: &str| services.contains(name);
        if let Some(of) = self.services.get_mut(Role::Outbound as usize) {
            of.retain(|name, _| !named(name));
        }
        let unnamed = |s: &Arc<Series>| s.role != Role::Outbound || !named(&s.service);
        let mut series = self
            .shared
            .series
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        series.retain(unnamed);
        drop(series);
        let mut loads = self
            .shared
            .loads
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loads.retain(|load| !named(&load.service));
    }

    /// Counts one ended call.
    pub fn record(&mut self, outcome: &Outcome<'_>) {
        let Some(services) = self.services.get_mut(outcome.role as usize) else {
            return;
        };
        let known = services.get(outcome.service);
        if let Some(series) = known.and_then(|service| service.methods.get(outcome.method)) {
            return series.record(outcome);
        }
        let known = known.is_some();
        let name = match known || services.len() < MAX_SERVICES {
            true => outcome.service,
            false => "other",
        };
        if !services.contains_key(name) {
            services.insert(name.into(), ServiceSeries::default());
        }
        let Some(service) = services.get_mut(name) else {
            return;
        };
        let may_be_named = !WITHOUT_METHOD.contains(&outcome.status)
            && outcome.reason.is_none()
            && service.methods.len() < MAX_METHODS;
        let method = method_name(outcome.method).filter(|_| may_be_named);
        let series = match (&service.other, method) {
            (Some(other), None) => Arc::clone(other),
            _ => {
                let label = method.unwrap_or("other");
                let series = Arc::new(Series::new(outcome.role, name, label));
                self.shared.register(&series);
                match method {
                    Some(method) => {
                        let method = method.as_bytes().into();
                        service.methods.insert(method, Arc::clone(&series));
                    }
                    None => service.other = Some(Arc::clone(&series)),
                }
                series
            }
        };
        series.record(outcome);
    }
}

/// `package.Service/Method`, if it has only the characters that protobuf allows. Nothing else becomes a label.
fn method_name(path: &[u8]) -> Option<&str> {
    let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/');
    let slashes = path.iter().filter(|b| **b == b'/').count();
    let fits = path.len() <= 200 && slashes == 1 && path.iter().all(word);
    std::str::from_utf8(path).ok().filter(|_| fits)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_methods_make_no_series() {
        let shared = Arc::new(WorkerMetrics::default());
        let mut recorder = Recorder::new(Arc::clone(&shared));
        let mut end = |method: &str, status| {
            recorder.record(&Outcome {
                role: Role::Outbound,
                service: "echo.default",
                method: method.as_bytes(),
                status,
                reason: None,
                attempts: 1,
                duration: Duration::ZERO,
                endpoint: None,
            });
            let mut names: Vec<_> = shared.series().iter().map(|s| s.method.clone()).collect();
            names.sort();
            names
        };
        assert_eq!(end("e.E/Invented", 12), ["other".into()]);
        assert_eq!(
            end("e.E/Invented", 1),
            ["other".into()],
            "the caller cancelled"
        );
        assert_eq!(end("e.E/Get", 5), ["e.E/Get".into(), "other".into()]);
        assert_eq!(end("e.E/Get", 1), ["e.E/Get".into(), "other".into()]);
    }
}
