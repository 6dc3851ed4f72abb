//! All that one worker owns: nothing of it is seen by another thread but what stands in `mailbox`. Rooms add
//! their own `impl Worker`; here are only the fields and the small verbs that all of them use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use heddle_h2::{ErrorCode, Fields, StreamId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustc_hash::{FxHashMap, FxHashSet};

use super::WorkerOptions;
use super::calls_watch::CallsWatch;
use super::mailbox::{Command, Shared, WorkerInit};
use crate::arena::Arena;
use crate::balance::passive::PassiveHealth;
use crate::connection::Connections;
use crate::exchange::parked::Parked;
use crate::exchange::replay::Replay;
use crate::exchange::services::Services;
use crate::exchange::state::Call;
use crate::exchange::waiting_places::WaitingPlaces;
use crate::keys::{CallKind, ConnKey, PoolKey};
use crate::listener::accept::Listener;
use crate::observe::Counter;
use crate::observe::metrics::{Recorder, WorkerMetrics};
use crate::route::RouteTable;
use crate::timers::{TimerId, Timers};
use crate::upstream::pool::{Load, Pools};

/// Bytes read at once: what the kernel gives a busy connection in a turn.
pub(crate) const READ_BUFFER: usize = 128 * 1024;
/// Buffers of finished calls kept for new ones.
const SPARES: usize = 256;
/// The list of a request that took more is not kept.
const SPARE_BYTES: usize = 8 * 1024;

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) poll: mio::Poll,
    pub(crate) commands: Receiver<Command>,
    /// The time of this turn.
    pub(crate) now: Instant,
    pub(crate) table: Arc<RouteTable>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) conns: Connections,
    pub(crate) calls: Arena<CallKind, Call>,
    pub(crate) pools: Pools,
    pub(crate) loads: FxHashMap<u64, Load>,
    /// Which instances do not answer.
    pub(crate) passive: PassiveHealth,
    pub(crate) services: Services,
    /// What stands in these maps may have left the table.
    pub(crate) unswept: bool,
    pub(crate) timers: Timers,
    /// Empty between turns: the connections that are flushed in this round.
    pub(crate) flushing: Vec<ConnKey>,
    /// Pools whose waiting calls may find room.
    pub(crate) runnable: Vec<PoolKey>,
    /// Calls waiting for the first table.
    pub(crate) tableless: WaitingPlaces,
    /// Calls waiting for the endpoints of their service.
    pub(crate) parked: Parked,
    /// Services that this worker has asked the control side for since the table came.
    pub(crate) asked: FxHashSet<Arc<str>>,
    /// Bytes that are buffered: what calls keep and what waits in the machines of all connections. See
    /// `exchange/holding.rs`.
    pub(crate) held: usize,
    /// Whether connections may take the memory that speed needs: not while the worker holds half of what it may.
    pub(crate) growing: bool,
    /// Endpoints whose last call somebody waits for.
    pub(crate) calls_watched: Vec<CallsWatch>,
    /// When calls are cut, once draining.
    pub(crate) draining: Option<Instant>,
    pub(crate) drained: bool,
    /// A timer runs that looks whether the drain is done.
    pub(crate) drain_look: bool,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) rng: SmallRng,
    /// Lent to a connection's machine for each header list.
    pub(crate) fields: Fields,
    /// For lists that the proxy makes itself.
    pub(crate) reply: Fields,
    pub(crate) text: Vec<u8>,
    pub(crate) buffer: Vec<u8>,
    spares: Vec<(Fields, Replay)>,
}

impl Worker {
    pub(crate) fn new(init: WorkerInit) -> Self {
        let WorkerInit {
            index,
            poll,
            registry,
            commands,
            shared,
        } = init;
        let now = Instant::now();
        let metrics = match shared.peers.get(index) {
            Some(peer) => Arc::clone(&peer.metrics),
            None => Arc::default(),
        };
        Self {
            index,
            poll,
            commands,
            now,
            table: Arc::new(RouteTable::empty(&shared.options.node)),
            listeners: Vec::new(),
            conns: Connections::new(registry),
            calls: Arena::default(),
            pools: Pools::default(),
            loads: FxHashMap::default(),
            passive: PassiveHealth::default(),
            services: Services::new(shared.peers.len()),
            unswept: false,
            timers: Timers::new(now),
            flushing: Vec::new(),
            runnable: Vec::new(),
            tableless: WaitingPlaces::default(),
            parked: Parked::default(),
            asked: FxHashSet::default(),
            held: 0,
            growing: true,
            calls_watched: Vec::new(),
            draining: None,
            drained: false,
            drain_look: false,
            recorder: Recorder::new(Arc::clone(&metrics)),
            metrics,
            rng: SmallRng::from_os_rng(),
            fields: Fields::new(),
            reply: Fields::new(),
            text: Vec::new(),
            buffer: vec![0; READ_BUFFER],
            spares: Vec::new(),
            shared,
        }
    }

    pub(crate) fn options(&self) -> &WorkerOptions {
        &self.shared.options
    }

    pub(crate) fn count(&self, counter: Counter) {
        self.metrics.counters.add(counter);
    }

    /// Puts a connection on the list of those to flush at the end of the turn.
    pub(crate) fn mark_dirty(&mut self, key: ConnKey) {
        self.conns.mark_to_flush(key);
    }

    /// Buffers for a new call, from a finished one if there is one.
    pub(crate) fn take_spare(&mut self) -> (Fields, Replay) {
        self.spares.pop().unwrap_or_default()
    }

    /// Gives a finished call's buffers back.
    pub(crate) fn give_spare(&mut self, mut fields: Fields, mut replay: Replay) {
        if self.spares.len() < SPARES && fields.capacity_bytes() <= SPARE_BYTES {
            fields.clear();
            replay.reset();
            self.spares.push((fields, replay));
        }
    }

    pub(crate) fn unset(&mut self, timer: Option<TimerId>) {
        if let Some(timer) = timer {
            self.timers.unset(timer);
        }
    }

    /// A random number in 0..1.
    pub(crate) fn random(&mut self) -> f64 {
        self.rng.random()
    }

    /// The bytes of a stream have been passed on: its sender may send more.
    pub(crate) fn release(&mut self, conn: ConnKey, stream: StreamId, bytes: usize) {
        self.conns.release(conn, stream, bytes);
    }

    /// Resets a stream of a connection.
    pub(crate) fn reset(&mut self, key: ConnKey, stream: StreamId, code: ErrorCode) {
        self.conns.reset(key, stream, code);
    }

    /// Sets a connection's timer to what is next for it, if that is sooner than what is set.
    pub(crate) fn rearm(&mut self, key: ConnKey) {
        let times = self.times();
        self.conns.rearm(key, &mut self.timers, times);
    }

    /// How long an upstream connection may be idle, and how long a keepalive may take.
    pub(crate) fn times(&self) -> (Duration, Duration) {
        let options = self.options();
        (options.upstream_idle, options.keepalive_timeout)
    }

    /// Has all connections do with little memory near the bound of it, and lets them go again below: windows grow
    /// no more, and less is kept unwritten for peers that do not read.
    pub(crate) fn bound_windows(&mut self) {
        let half = self.options().held_bytes / 2;
        let growing = match self.growing {
            true => self.held <= half,
            false => self.held <= half / 2,
        };
        if growing == self.growing {
            return;
        }
        self.growing = growing;
        self.conns.set_frugal(!growing);
    }

    /// Writes the gauges that others read.
    pub(crate) fn publish_gauges(&self) {
        WorkerMetrics::set(&self.metrics.calls, self.calls.len());
        WorkerMetrics::set(&self.metrics.downstream, self.conns.accepted());
        WorkerMetrics::set(&self.metrics.upstream, self.conns.opened());
        WorkerMetrics::set(&self.metrics.held_bytes, self.held);
        WorkerMetrics::set(&self.metrics.pending, self.pools.pending);
        let waiting = self.tableless.len() + self.parked.len();
        WorkerMetrics::set(&self.metrics.waiting, waiting);
        if let Some(peer) = self.shared.peers.get(self.index) {
            peer.load.store(self.conns.accepted(), Ordering::Relaxed);
        }
    }

    /// Begins to close a connection: what is in its output is still written.
    pub(crate) fn begin_close(&mut self, key: ConnKey) {
        self.conns.begin_close(key, self.now);
    }
}
