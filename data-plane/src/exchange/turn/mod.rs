//! The steps of a turn, as the event loop drives them: input of sockets, timers, output, gauges. Takes events of sockets
//! and the time; gives the time until which the loop may wait. What happens to calls is in the files beside it.

mod drain;
mod sweep;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_h2::Fields;

use crate::connection::Conn;
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::observe::Counter;
use crate::observe::metrics::WorkerMetrics;
use crate::route::RouteTable;
use crate::timers::Timer;
use crate::upstream::load::Load;

impl Exchange {
    /// How long the event loop may wait for sockets; `None`: until one has an event.
    pub(crate) fn longest_wait(&self) -> Option<Duration> {
        match self.conns.has_to_read() {
            true => Some(Duration::ZERO),
            false => self.timers.wait(self.now),
        }
    }

    /// A turn begins: continues with connections that had more input than one turn takes.
    pub(crate) fn begin_turn(&mut self, now: Instant, buffer: &mut [u8]) {
        self.now = now;
        for key in self.conns.take_to_read() {
            self.guard(key, |exchange| exchange.read(key, buffer));
        }
    }

    /// Time of the current turn.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// The kernel reports an event of a connection's socket.
    pub(crate) fn on_socket(&mut self, key: ConnKey, event: &mio::event::Event, buffer: &mut [u8]) {
        let mut to_read = event.is_readable() || event.is_read_closed() || event.is_error();
        if event.is_writable() {
            to_read |= self.on_writable(key);
        }
        if (event.is_read_closed() || event.is_error())
            && let Some(conn) = self.conns.get_mut(key)
        {
            conn.on_input_end();
        }
        if to_read {
            self.guard(key, |exchange| exchange.read(key, buffer));
        } else {
            self.guard(key, |exchange| {
                exchange.advance_handshake(key);
            });
        }
    }

    /// The socket has room again. True if the connection has to be read: its transport waited for that.
    pub(super) fn on_writable(&mut self, key: ConnKey) -> bool {
        let conn = self.conns.get_mut(key);
        let to_read = conn.is_some_and(Conn::on_writable);
        self.mark_dirty(key);
        to_read
    }

    pub(crate) fn set_timer(&mut self, at: Instant, timer: Timer) {
        self.timers.set(at, timer);
    }

    /// The next timer that is due.
    pub(crate) fn next_timer(&mut self) -> Option<Timer> {
        self.timers.due(self.now)
    }

    /// A timer is due. Those of the event loop itself have no effect here.
    pub(crate) fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Deadline(call) => {
                self.guard_call(call, |exchange| exchange.on_call_deadline(call));
            }
            Timer::Wait(call) => self.guard_call(call, |exchange| exchange.on_call_wait(call)),
            Timer::Conn(key) => self.guard(key, |exchange| exchange.on_conn_timer(key)),
            Timer::Pool(pool) => self.on_pool_timer(pool),
            Timer::Sweep => self.sweep(),
            Timer::Drain | Timer::DrainOver => {}
        }
    }

    /// Gives free streams to waiting calls, then writes until no connection has output, since writing on one side gives
    /// credit on the other.
    pub(crate) fn flush_all(&mut self) {
        self.feed_pools();
        // Returned below; after a panic a new one is used.
        let mut round = std::mem::take(&mut self.flushing);
        while self.conns.take_to_flush(&mut round) {
            for key in round.drain(..) {
                if self.conns.begin_flush(key) {
                    self.guard(key, |exchange| exchange.flush(key));
                }
            }
            self.feed_pools();
        }
        self.flushing = round;
    }

    /// A turn ends: adapts to the memory in use and updates the gauges that other threads read.
    pub(crate) fn end_turn(&mut self) {
        self.switch_low_memory();
        let (metrics, admission) = (&self.metrics, &self.admission);
        WorkerMetrics::set(&metrics.calls, self.calls.len());
        WorkerMetrics::set(&metrics.downstream, self.conns.accepted());
        WorkerMetrics::set(&metrics.upstream, self.conns.opened());
        WorkerMetrics::set(&metrics.buffered_bytes, admission.buffered_bytes());
        WorkerMetrics::set(&metrics.pending, admission.waiting_for_streams());
        WorkerMetrics::set(&metrics.waiting, admission.waiting_for_state());
    }

    // ---- what others ask

    /// Number of connections that callers opened.
    pub(crate) fn accepted(&self) -> usize {
        self.conns.accepted()
    }

    pub(crate) fn connections(&self) -> impl Iterator<Item = &Conn> {
        self.conns.iter().map(|(_, conn)| conn)
    }

    /// Number of calls in flight on an endpoint.
    pub(crate) fn calls_on(&self, uid: u64) -> usize {
        let pending = self.pools.load(uid).map_or(0, Load::pending);
        usize::try_from(pending).unwrap_or(usize::MAX)
    }

    /// These services have not been called for a long time: drops their counters.
    pub(crate) fn forget(&mut self, services: &HashSet<Arc<str>>) {
        self.recorder.forget(services);
        self.admission
            .retain_services(|name| !services.contains(name));
        for load in self.pools.loads_mut() {
            load.forget(|service| services.contains(service));
        }
    }

    /// Runs `work` that belongs to no connection; if it panics, the rest of the turn continues.
    fn contain(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.count(Counter::Panics);
        }
    }

    /// After a panic outside of any connection: all connections and pools are checked again.
    pub(crate) fn recover(&mut self, after: Duration) {
        self.count(Counter::Panics);
        self.fields = Fields::new();
        self.conns.mark_all();
        let at = self.now + after;
        self.pools.recover(&mut self.timers, at);
    }

    /// Installs a new table: calls that waited for it continue.
    pub(crate) fn set_table(&mut self, table: Arc<RouteTable>) {
        self.table = table;
        self.pools.on_table(self.table.draining());
        self.refit_ejected();
        self.resume_waiting();
    }
}
