//! The event loop of one worker. One turn: take what others sent, read every readable connection, fire what is
//! due, then flush each connection that has output once. Each connection is handled under `catch_unwind`, so
//! that a bug costs one connection and not the proxy.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_h2::Fields;

use super::mailbox::{Command, WorkerInit};
use super::state::{READ_BUFFER, Worker};
use super::workers::WAKER;
use super::{ConnectionInfo, Role};
use crate::arena::Key;
use crate::connection::{Conn, Input, OutputState, Sniff};
use crate::keys::{CallKey, ConnKey};
use crate::listener::accept::LISTENERS;
use crate::observe::Counter;
use crate::timers::Timer;

/// How often one connection is read in one turn before the others have theirs.
const READS_PER_TURN: usize = 4;
/// How often endpoints and stalled calls are looked after.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// When work that a panic cut short is tried again: what panics each time must not keep the worker busy.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Runs one worker until it is told to stop.
pub(crate) fn run(init: WorkerInit) {
    let mut worker = Worker::new(init);
    let mut events = mio::Events::with_capacity(1024);
    let first = worker.now + SWEEP_EVERY;
    worker.timers.set(first, Timer::Sweep);
    loop {
        match catch_unwind(AssertUnwindSafe(|| worker.turn(&mut events))) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => worker.recover(),
        }
    }
}

impl Worker {
    /// False once told to stop.
    fn turn(&mut self, events: &mut mio::Events) -> bool {
        let wait = match self.conns.has_to_read() {
            true => Some(Duration::ZERO),
            false => self.timers.wait(self.now),
        };
        if let Err(error) = self.poll.poll(events, wait)
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::error!(worker = self.index, %error, "waiting for events failed");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.now = Instant::now();
        for key in self.conns.take_to_read() {
            self.attend(key);
        }
        for event in events.iter() {
            match event.token() {
                WAKER => {
                    if !self.handle_commands() {
                        return false;
                    }
                }
                token if token.0 >= LISTENERS => self.accept_from(token),
                token => self.on_socket(Key::unpack(token.0 as u64), event),
            }
        }
        while let Some(timer) = self.timers.due(self.now) {
            self.fire(timer);
        }
        self.feed_pools();
        self.flush_all();
        if !self.calls_watched.is_empty() {
            self.tell_calls_watched();
        }
        if self.draining.is_some() {
            self.check_drained();
        }
        self.bound_windows();
        self.publish_gauges();
        true
    }

    fn handle_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::ListenTcp(role, socket) => self.listen_tcp(role, socket),
                Command::ListenUnix(role, socket) => self.listen_unix(role, socket),
                Command::AcceptedTcp(role, socket) => self.take_tcp(role, socket),
                Command::AcceptedUnix(role, socket) => self.take_unix(role, socket),
                Command::Table => self.swap_table(),
                Command::Forget(services) => self.forget(&services),
                Command::WatchCalls(watch) => self.calls_watched.push(watch),
                Command::Drain => self.begin_drain(),
                Command::Connections(reply) => drop(reply.try_send(self.list_connections())),
                Command::Stop => return false,
            }
        }
        true
    }

    pub(super) fn swap_table(&mut self) {
        if let Some(peer) = self.shared.peers.get(self.index) {
            self.table = peer.table.load_full();
            self.unswept = true;
        }
        self.refit_ejected();
        // A table that is not ready yet may have what a call waits for: this node's own instances come first.
        for call in self.tableless.take() {
            self.guard_call(call, |worker| worker.route_call(call));
        }
        self.asked.clear();
        self.unpark();
    }

    fn on_socket(&mut self, key: ConnKey, event: &mio::event::Event) {
        if event.is_writable() {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.on_writable();
            }
            self.mark_dirty(key);
        }
        if (event.is_read_closed() || event.is_error())
            && let Some(conn) = self.conns.get_mut(key)
        {
            conn.on_input_end();
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.attend(key);
        } else {
            self.guard(key, |worker| worker.look_connected(key));
        }
    }

    /// Reads a connection, which may have been connected just now.
    fn attend(&mut self, key: ConnKey) {
        self.guard(key, |worker| {
            worker.look_connected(key);
            worker.read(key);
        });
    }

    fn look_connected(&mut self, key: ConnKey) {
        let conn = self.conns.get(key);
        if conn.is_some_and(Conn::is_handshaking) {
            self.on_connecting(key);
        }
    }

    /// After a panic outside of any connection: the events of the turn are lost, and the kernel tells of them only
    /// once. Everything is looked at again.
    pub(super) fn recover(&mut self) {
        self.count(Counter::Panics);
        self.fields = Fields::new();
        self.conns.mark_all();
        for pool in self.pools.arena.keys() {
            self.mark_runnable(pool);
        }
        self.set_lost_timers();
        self.relisten_all();
        if let Some(peer) = self.shared.peers.get(self.index) {
            let _ = peer.waker.wake();
        }
    }

    /// A timer that fired in the turn that panicked may have done nothing: what depends on it is set anew. Those of calls
    /// and connections are handled under a guard of their own.
    fn set_lost_timers(&mut self) {
        let soon = self.now + AFTER_PANIC;
        for key in self.pools.arena.keys() {
            if let Some(pool) = self.pools.arena.get_mut(key)
                && pool.timer.is_none()
                && pool.retry_at.is_some()
            {
                pool.timer = Some(self.timers.set(soon, Timer::Pool(key)));
            }
        }
        if self.draining.is_some_and(|over| over <= self.now) && !self.drained {
            self.timers.set(soon, Timer::DrainOver);
        }
    }

    /// Runs `work` that is for no connection; if it panics, the rest of the turn goes on.
    fn contain(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.count(Counter::Panics);
        }
    }

    /// Runs `work` for a call; if it panics, the connection of its caller is closed.
    pub(crate) fn guard_call(&mut self, call: CallKey, work: impl FnOnce(&mut Self)) {
        if let Some(conn) = self.calls.get(call).map(|call| call.down.conn) {
            self.guard(conn, work);
        }
    }

    /// Runs `work` for a connection; if it panics, that connection is closed and the proxy lives.
    pub(crate) fn guard(&mut self, key: ConnKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        self.count(Counter::Panics);
        // What was lent to the work may be lost.
        self.fields = Fields::new();
        let closed = catch_unwind(AssertUnwindSafe(|| {
            self.lose(key, "handling it failed inside the proxy");
        }));
        if closed.is_err() {
            tracing::error!("closing a connection after a panic panicked; it is dropped");
            if let Some(conn) = self.conns.remove(key, &mut self.timers) {
                self.forget_machine(conn.machine_bytes());
            }
        }
    }

    /// Reads a connection until it has no more, or has had its share of the turn.
    pub(super) fn read(&mut self, key: ConnKey) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BUFFER, 0);
        for round in 0.. {
            if round == READS_PER_TURN {
                self.conns.mark_to_read(key);
                break;
            }
            let Some(conn) = self.conns.get_mut(key) else {
                break;
            };
            match conn.read(&mut buffer, self.now) {
                Input::Bytes { len, more } => {
                    self.feed(key, buffer.get(..len).unwrap_or_default());
                    if !more {
                        break;
                    }
                }
                Input::Blocked => break,
                Input::Closed(why) => {
                    self.lose(key, &why);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Hands bytes to the machine and its events to whoever they are for.
    fn feed(&mut self, key: ConnKey, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.is_ending() {
            return;
        }
        let (before, after) = conn.identify(bytes);
        match after {
            Sniff::Open(_) => return,
            Sniff::Http1 => return self.refuse_http1(key),
            Sniff::Http2 => self.recv(key, before.held_back()),
        }
        self.recv(key, bytes);
    }

    fn recv(&mut self, key: ConnKey, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut fields = std::mem::take(&mut self.fields);
        while let Some(conn) = self.conns.get_mut(key) {
            let accepted = conn.is_accepted();
            match conn.receive(&mut bytes, &mut fields, self.now) {
                Ok(Some(event)) if accepted => self.on_down_event(key, event, &mut fields),
                Ok(Some(event)) => self.on_up_event(key, event, &mut fields),
                Ok(None) => break,
                Err(error) => {
                    self.on_protocol_error(key, error);
                    break;
                }
            }
        }
        self.fields = fields;
        self.count_refused(key);
        self.on_progress(key);
        self.mark_dirty(key);
    }

    fn count_refused(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let more = conn.newly_refused();
        if more > 0 {
            self.metrics.counters.add_many(Counter::BoundStreams, more);
        }
    }

    pub(super) fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Deadline(call) => self.guard_call(call, |worker| worker.on_call_deadline(call)),
            Timer::Wait(call) => self.guard_call(call, |worker| worker.on_call_wait(call)),
            Timer::Conn(key) => self.guard(key, |worker| worker.on_conn_timer(key)),
            Timer::Pool(pool) => self.on_pool_timer(pool),
            Timer::Sweep => {
                // Set again before the work, which may panic.
                self.timers.set(self.now + SWEEP_EVERY, Timer::Sweep);
                self.contain(Self::sweep_upstream);
                self.contain(Self::cut_stalled);
                self.contain(Self::accept_all);
            }
            // The turn itself looks.
            Timer::Drain => self.drain_look = false,
            Timer::DrainOver => self.cut_drained(),
        }
    }

    /// Flushes until nothing is dirty: writing on one side gives credit on the other.
    fn flush_all(&mut self) {
        let mut round = std::mem::take(&mut self.flushing);
        while self.conns.take_to_flush(&mut round) {
            for key in round.drain(..) {
                if self.conns.begin_flush(key) {
                    self.guard(key, |worker| worker.flush(key));
                }
            }
            self.feed_pools();
        }
        self.flushing = round;
    }

    pub(crate) fn flush(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let full = conn.full_for();
        match conn.flush(self.now) {
            OutputState::Done | OutputState::Blocked => {}
            OutputState::Overfull => {
                self.count(Counter::BoundOutput);
                self.lose(key, "it leaves unread what is written for it");
            }
            OutputState::Failed => self.conns.mark_to_read(key),
        }
        self.on_progress(key);
        self.rearm(key);
        self.count_machine(key);
        // Calls may have waited until the server reads on.
        let relieved = |conn: &Conn| conn.has_output_room();
        if let Some(pool) = full
            && self.conns.get(key).is_some_and(relieved)
        {
            self.mark_runnable(pool);
        }
    }

    fn list_connections(&self) -> Vec<ConnectionInfo> {
        let info = |conn: &Conn| ConnectionInfo {
            worker: self.index,
            kind: conn.role().map_or("upstream", Role::name),
            peer: conn.peer().to_string(),
            streams: conn.live_streams(),
        };
        self.conns.iter().map(|(_, conn)| info(conn)).collect()
    }

    /// The table of this worker, to be read while the worker changes.
    pub(crate) fn table(&self) -> Arc<crate::route::RouteTable> {
        Arc::clone(&self.table)
    }
}
