//! The state of one worker's connections and calls: the owners of both, the routing table, and the memory that calls
//! share. It is private to this module: the event loop uses only methods. This file has the fields and the small
//! functions that all files of the module use; the others say what happens to calls. Event loop and listening sockets
//! do not belong here.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_h2::{Fields, StreamId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use crate::balance::passive::PassiveHealth;
use crate::connection::Connections;
use crate::exchange::admission::Admission;
use crate::exchange::answer::CallerStream;
use crate::exchange::call::{Calls, Downstream};
use crate::exchange::endpoint_requests::EndpointRequests;
use crate::keys::ConnKey;
use crate::observe::metrics::{Recorder, WorkerMetrics};
use crate::observe::{Counter, Report};
use crate::route::RouteTable;
use crate::settings::WorkerOptions;
use crate::timers::{Timer, TimerId, Timers};
use crate::upstream::Pools;
use crate::upstream::pools::Io;

/// Interval of checking endpoints and stalled calls.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What an exchange needs at its start.
#[derive(Debug)]
pub(crate) struct ExchangeInit {
    pub(crate) registry: mio::Registry,
    pub(crate) options: Arc<WorkerOptions>,
    /// Number of workers of the node.
    pub(crate) workers: usize,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) internal: mpsc::Sender<UnixStream>,
}

/// All calls of one worker with the connections and pools that they use.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(super) options: Arc<WorkerOptions>,
    /// Time of the current turn.
    pub(super) now: Instant,
    pub(super) table: Arc<RouteTable>,
    pub(super) conns: Connections,
    pub(super) calls: Calls,
    pub(super) pools: Pools,
    /// Which instances do not answer.
    pub(super) passive: PassiveHealth,
    pub(super) timers: Timers,
    /// What callers share.
    pub(super) admission: Admission,
    pub(super) endpoint_requests: EndpointRequests,
    pub(super) recorder: Recorder,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) rng: SmallRng,
    /// Lent to a connection's HTTP/2 state machine for each header list.
    pub(super) fields: Fields,
    /// For header lists that the proxy makes itself.
    pub(super) reply: Fields,
    pub(super) text: Vec<u8>,
    /// The connections that are flushed in this round; empty between turns.
    pub(super) flushing: Vec<ConnKey>,
}

impl Exchange {
    pub(crate) fn new(init: ExchangeInit) -> Self {
        let ExchangeInit {
            registry,
            options,
            workers,
            metrics,
            reports,
            internal,
        } = init;
        let now = Instant::now();
        let mut timers = Timers::new(now);
        timers.set(now + SWEEP_EVERY, Timer::Sweep);
        Self {
            now,
            table: Arc::new(RouteTable::empty(&options.node)),
            conns: Connections::new(registry),
            calls: Calls::default(),
            pools: Pools::new(
                Arc::clone(&options),
                Arc::clone(&metrics),
                reports.clone(),
                internal,
            ),
            endpoint_requests: EndpointRequests::new(reports),
            admission: Admission::new(&options, workers),
            options,
            passive: PassiveHealth::default(),
            timers,
            recorder: Recorder::new(Arc::clone(&metrics)),
            metrics,
            rng: SmallRng::from_os_rng(),
            fields: Fields::new(),
            reply: Fields::new(),
            text: Vec::new(),
            flushing: Vec::new(),
        }
    }

    pub(crate) fn options(&self) -> &WorkerOptions {
        &self.options
    }

    pub(crate) fn count(&self, counter: Counter) {
        self.metrics.counters.add(counter);
    }

    /// Adds a connection to those that are flushed at the end of the turn.
    pub(super) fn mark_dirty(&mut self, key: ConnKey) {
        self.conns.mark_to_flush(key);
    }

    pub(super) fn unset(&mut self, timer: Option<TimerId>) {
        if let Some(timer) = timer {
            self.timers.unset(timer);
        }
    }

    /// A random number in 0..1.
    pub(super) fn random(&mut self) -> f64 {
        self.rng.random()
    }

    /// Bytes of a stream have been forwarded: its sender may send more.
    pub(super) fn release(&mut self, conn: ConnKey, stream: StreamId, bytes: usize) {
        self.conns.release(conn, stream, bytes);
    }

    /// Sets a connection's timer to its next due time, if that is earlier than the current one.
    pub(super) fn rearm(&mut self, key: ConnKey) {
        let times = self.times();
        self.conns.rearm(key, &mut self.timers, times);
    }

    /// How long an upstream connection may be idle, and how long the answer to a keep-alive may take.
    pub(super) fn times(&self) -> (Duration, Duration) {
        let options = self.options();
        (options.upstream_idle, options.keepalive_timeout)
    }

    /// Connections save memory while the buffers are nearly full.
    pub(super) fn switch_low_memory(&mut self) {
        if let Some(low_memory) = self.admission.switch_low_memory() {
            self.conns.set_low_memory(low_memory);
        }
    }

    /// Begins to close a connection; its remaining output is still written.
    pub(super) fn begin_close(&mut self, key: ConnKey) {
        self.conns.begin_close(key, self.now);
    }

    /// This worker's table, cloned so that the worker can be changed while it is read.
    pub(super) fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.table)
    }

    /// Returns flow-control credit to a caller.
    pub(super) fn credit_caller(&mut self, down: Downstream, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(mut caller) = CallerStream::of(&mut self.conns, down) {
            caller.credit(bytes);
        }
        self.mark_dirty(down.conn);
    }

    /// The pools and what they need to work.
    pub(super) fn pools_io(&mut self) -> (&mut Pools, Io<'_>) {
        let io = Io {
            conns: &mut self.conns,
            timers: &mut self.timers,
            now: self.now,
            low_memory: self.admission.is_low_memory(),
        };
        (&mut self.pools, io)
    }
}
