//! The last report of every open stream, and totals per service since the process began. Everything is bounded. This
//! module must not use a clock or a transport.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use heddle_proto::status::v1::Edge;
use tokio::time::Instant;

use super::{Destination, Load, Report};
use crate::budget::{Shares, Who};

/// Most streams at a time.
pub const MAX_STREAMS: usize = 10_000;
/// Most rows of all streams together, about 300 bytes each; further rows of a report are left out.
pub const MAX_ENTRIES: usize = 100_000;
/// After this many silent intervals a client counts as having no calls: some clients send nothing then.
const KEPT_INTERVALS: u32 = 3;
/// Most services with their own totals; those of further services are counted under `OTHERS`.
const MAX_SERVICES: usize = 1000;
const OTHERS: &str = "(other)";

/// What clients report. Clones share it.
#[derive(Clone, Default)]
pub struct Loads(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    reports: AtomicU64,
    left_out: AtomicU64,
    refused: AtomicU64,
}

struct State {
    streams: BTreeMap<u64, Reporter>,
    last_id: u64,
    /// The limits of streams and rows per peer, so that one peer leaves room for others.
    shares: Shares,
    entries: Shares,
    totals: BTreeMap<String, Totals>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            streams: BTreeMap::new(),
            last_id: 0,
            shares: Shares::new(MAX_STREAMS),
            entries: Shares::new(MAX_ENTRIES),
            totals: BTreeMap::new(),
        }
    }
}

struct Reporter {
    who: Who,
    caller: String,
    role: String,
    loads: BTreeMap<Destination, ReportedLoad>,
}

struct ReportedLoad {
    load: Load,
    until: Instant,
}

/// The totals of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    succeeded: u64,
    failed: u64,
    dropped: u64,
}

/// The totals of one service over all reports that this replica received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTotals {
    pub service: String,
    pub succeeded: u64,
    pub failed: u64,
    pub dropped: u64,
}

/// The limit of streams is reached.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "too many streams of load reports: this replica accepts {MAX_STREAMS} in all, and from one \
     peer at most four times the number that is free"
)]
pub struct TooManyStreams;

impl Loads {
    /// A stream begins; `role` is the one in the lists of clients.
    pub fn join(&self, who: Who, caller: &str, role: &str) -> Result<ReportStream, TooManyStreams> {
        let mut state = self.state();
        if state.shares.take(who, 1).is_err() {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return Err(TooManyStreams);
        }
        state.last_id += 1;
        let id = state.last_id;
        let reporter = Reporter {
            who,
            caller: caller.to_owned(),
            role: role.to_owned(),
            loads: BTreeMap::new(),
        };
        state.streams.insert(id, reporter);
        Ok(ReportStream {
            id,
            who,
            loads: self.clone(),
        })
    }

    /// The edges of the last reports, sorted by caller, service and locality.
    #[must_use]
    pub fn edges(&self, now: Instant) -> Vec<Edge> {
        let state = self.state();
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for (id, reporter) in &state.streams {
            if reporter.role == "proxy" {
                newest.insert(&reporter.caller, *id);
            }
        }
        let mut edges: Vec<Edge> = state
            .streams
            .iter()
            // A proxy's node id is unique: if it has two streams, the older one is dead and this was not noticed yet.
            .filter(|(id, reporter)| {
                reporter.role != "proxy" || newest.get(&*reporter.caller) == Some(*id)
            })
            .flat_map(|(_, reporter)| reporter.loads.iter().map(move |each| (reporter, each)))
            .filter(|(_, (_, reported))| reported.until > now)
            .map(|(reporter, (destination, reported))| edge(reporter, destination, &reported.load))
            .collect();
        edges.sort_by(|a, b| order(a).cmp(&order(b)));
        edges
    }

    /// Sorted by service; at most `MAX_SERVICES` and one more.
    #[must_use]
    pub fn totals(&self) -> Vec<ServiceTotals> {
        let state = self.state();
        let totals = state.totals.iter().map(|(service, totals)| ServiceTotals {
            service: service.clone(),
            succeeded: totals.succeeded,
            failed: totals.failed,
            dropped: totals.dropped,
        });
        totals.collect()
    }

    /// The number of open streams, and of their rows.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let state = self.state();
        (state.streams.len(), state.entries.used())
    }

    /// Reports taken.
    #[must_use]
    pub fn reports(&self) -> u64 {
        self.0.reports.load(Ordering::Relaxed)
    }

    /// Rows left out: see `Report::left_out`, and those beyond `MAX_ENTRIES`.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.0.left_out.load(Ordering::Relaxed)
    }

    /// Streams refused because there were too many.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn order(edge: &Edge) -> (&str, &str, &str) {
    (&edge.caller, &edge.service, &edge.locality)
}

fn edge(reporter: &Reporter, destination: &Destination, load: &Load) -> Edge {
    Edge {
        caller: reporter.caller.clone(),
        role: reporter.role.clone(),
        service: destination.service.clone(),
        locality: destination.locality.clone(),
        requests_per_second: load.requests_per_second(),
        success_ratio: load.success_ratio(),
        in_progress: load.in_progress,
        latency_ms: load.mean_latency_ms(),
        dropped: load.dropped,
        interval_seconds: load.interval.as_secs_f64(),
    }
}

/// A stream's entry; dropping it removes the entry.
pub struct ReportStream {
    id: u64,
    who: Who,
    loads: Loads,
}

impl ReportStream {
    /// Replaces the stream's last report: services that the new one does not name had no calls. `interval`: how often
    /// the client should report.
    pub fn report(&self, report: Report, interval: Duration, now: Instant) {
        let mut left_out = report.left_out;
        let mut state = self.loads.state();
        state.forget(self.id);
        let mut loads = BTreeMap::new();
        for (destination, load) in report.loads {
            if state.entries.take(self.who, 1).is_err() {
                left_out += 1;
                continue;
            }
            state.sum(&destination.service, &load);
            let until = now + interval.max(load.interval) * KEPT_INTERVALS;
            loads.insert(destination, ReportedLoad { load, until });
        }
        state.put(self.id, loads);
        drop(state);
        self.loads.0.reports.fetch_add(1, Ordering::Relaxed);
        self.loads.0.left_out.fetch_add(left_out, Ordering::Relaxed);
    }
}

impl Drop for ReportStream {
    fn drop(&mut self) {
        let mut state = self.loads.state();
        state.forget(self.id);
        state.streams.remove(&self.id);
        state.shares.give(self.who, 1);
    }
}

impl State {
    fn forget(&mut self, id: u64) {
        if let Some(reporter) = self.streams.get_mut(&id) {
            let rows = std::mem::take(&mut reporter.loads).len();
            self.entries.give(reporter.who, rows);
        }
    }

    /// The limit of rows was already applied to these.
    fn put(&mut self, id: u64, loads: BTreeMap<Destination, ReportedLoad>) {
        if let Some(reporter) = self.streams.get_mut(&id) {
            reporter.loads = loads;
        }
    }

    fn sum(&mut self, service: &str, load: &Load) {
        let known = self.totals.contains_key(service);
        let name = if known || self.totals.len() < MAX_SERVICES {
            service
        } else {
            OTHERS
        };
        let totals = self.totals.entry(name.to_owned()).or_default();
        totals.succeeded = totals.succeeded.saturating_add(load.succeeded);
        totals.failed = totals.failed.saturating_add(load.failed);
        totals.dropped = totals.dropped.saturating_add(load.dropped);
    }
}
