//! The event loop of one worker. One turn: take what others sent, read every readable connection, fire what is
//! due, then flush each connection that has output once. Each connection is handled under `catch_unwind`, so
//! that a bug costs one connection and not the proxy.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_h2::Fields;

use super::ConnectionInfo;
use super::arena::Key;
use super::conn::{CallKey, ConnKey, Ending, Side, UpState};
use super::mailbox::{Command, Seat};
use super::state::{READ_BUFFER, Timer, Worker};
use super::workers::WAKER;
use crate::listener::accept::LISTENERS;
use crate::observe::Counter;

/// How often one connection is read in one turn before the others have theirs.
const READS_PER_TURN: usize = 4;
/// A peer that leaves so much unread is given up. Header lists and DATA wait in their streams long before, so only
/// frames of control can come to this: acknowledgements, resets and credit for what the peer goes on sending.
const OUTPUT_BYTES: usize = 8 << 20;
/// How often endpoints and stalled calls are looked after.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// When work that a panic cut short is tried again: what panics each time must not keep the worker busy.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Runs one worker until it is told to stop.
pub(crate) fn run(seat: Seat) {
    let mut worker = Worker::new(seat);
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
        let wait = match self.unread.is_empty() {
            true => self.timers.wait(self.now),
            false => Some(Duration::ZERO),
        };
        if let Err(error) = self.poll.poll(events, wait)
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::error!(worker = self.index, %error, "waiting for events failed");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.now = Instant::now();
        for key in std::mem::take(&mut self.unread) {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.unread = false;
                self.attend(key);
            }
        }
        for event in events.iter() {
            match event.token() {
                WAKER => {
                    if !self.obey() {
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
        if self.draining.is_some() {
            self.check_drained();
        }
        self.bound_windows();
        self.publish_gauges();
        true
    }

    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::ListenTcp(role, socket) => self.listen_tcp(role, socket),
                Command::ListenUnix(role, socket) => self.listen_unix(role, socket),
                Command::AcceptedTcp(role, socket) => self.take_tcp(role, socket),
                Command::AcceptedUnix(role, socket) => self.take_unix(role, socket),
                Command::Table => self.swap_table(),
                Command::Forget(services) => self.forget(&services),
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
                conn.blocked = false;
            }
            self.mark_dirty(key);
        }
        if (event.is_read_closed() || event.is_error())
            && let Some(conn) = self.conns.get_mut(key)
        {
            conn.read_closed = true;
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
        let up = self.conns.get(key).and_then(|conn| conn.up());
        if up.is_some_and(|up| matches!(up.state, UpState::Connecting(_))) {
            self.on_connecting(key);
        }
    }

    /// After a panic outside of any connection: the events of the turn are lost, and the kernel tells of them only
    /// once. Everything is looked at again.
    pub(super) fn recover(&mut self) {
        self.count(Counter::Panics);
        self.fields = Fields::new();
        self.unread.clear();
        self.dirty.clear();
        for key in self.conns.keys() {
            if let Some(conn) = self.conns.get_mut(key) {
                (conn.unread, conn.dirty, conn.blocked) = (false, false, false);
            }
            self.mark_unread(key);
            self.mark_dirty(key);
        }
        for pool in self.pools.arena.keys() {
            self.hunger(pool);
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
            if let Some(conn) = self.conns.remove(key) {
                self.forget_machine(conn.machine);
            }
        }
    }

    /// Reads a connection until it has no more, or has had its share of the turn.
    pub(super) fn read(&mut self, key: ConnKey) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BUFFER, 0);
        for round in 0.. {
            if round == READS_PER_TURN {
                self.mark_unread(key);
                break;
            }
            let Some(conn) = self.conns.get_mut(key) else {
                break;
            };
            match conn.transport.read(&mut buffer) {
                Ok(0) => {
                    let why = conn.write_failed.take();
                    self.lose(key, why.as_deref().unwrap_or("the peer closed it"));
                    break;
                }
                Ok(len) => {
                    conn.last_read = self.now;
                    // A short read means that there was no more, and the next edge tells of what comes: one more
                    // read would mostly be a system call for nothing. Unless the end of the stream waits.
                    let more = len == READ_BUFFER || conn.read_closed;
                    self.feed(key, buffer.get(..len).unwrap_or_default());
                    if !more {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let blocked = error.kind() == io::ErrorKind::WouldBlock;
                    match conn.write_failed.take() {
                        Some(why) => self.lose(key, &why),
                        None if !blocked => self.lose(key, &error.to_string()),
                        None => {}
                    }
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
        if conn.ending != Ending::No {
            return;
        }
        let mut bytes = bytes;
        if let Side::Down(down) = &mut conn.side {
            let before = down.sniff;
            down.sniff = before.feed(bytes);
            match down.sniff {
                crate::listener::http1::Sniff::Open(_) => return,
                crate::listener::http1::Sniff::Http1 => return self.refuse_http1(key),
                crate::listener::http1::Sniff::Http2 => {
                    let mut held = before.held_back();
                    self.recv(key, &mut held);
                }
            }
        }
        self.recv(key, &mut bytes);
    }

    fn recv(&mut self, key: ConnKey, bytes: &mut &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut fields = std::mem::take(&mut self.fields);
        while let Some(conn) = self.conns.get_mut(key) {
            let down = conn.down().is_some();
            match conn.h2.recv(bytes, &mut fields, self.now) {
                Ok(Some(event)) if down => self.on_down_event(key, event, &mut fields),
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
        let refused = conn.h2.counters().refused;
        let more = refused - std::mem::replace(&mut conn.refused, refused);
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
        while !self.dirty.is_empty() {
            std::mem::swap(&mut self.dirty, &mut round);
            for key in round.drain(..) {
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.dirty = false;
                    self.guard(key, |worker| worker.flush(key));
                }
            }
            self.feed_pools();
        }
        self.flushing = round;
    }

    pub(crate) fn flush(&mut self, key: ConnKey) {
        let full = self.conns.get(key).and_then(super::conn::Conn::full_for);
        loop {
            let Some(conn) = self.conns.get_mut(key) else {
                return;
            };
            let connecting = matches!(conn.up().map(|up| &up.state), Some(UpState::Connecting(_)));
            // A caller of HTTP/1 must not be sent the frames of HTTP/2.
            let unknown = conn.is_unknown() && conn.ending == Ending::No;
            let over = matches!(conn.ending, Ending::Wait(_)) || conn.write_failed.is_some();
            if connecting || unknown || over {
                break;
            }
            let output = conn.h2.output();
            if output.is_empty() {
                if let Ending::Flush(until) = conn.ending {
                    conn.ending = Ending::Wait(until);
                    conn.transport.shutdown_write();
                }
                break;
            }
            if conn.blocked {
                break self.bound_output(key);
            }
            let whole = output.len();
            match conn.transport.write(output) {
                Ok(written) => {
                    conn.h2.advance(written);
                    // A short write: the socket is full, and tells when it is not.
                    if written < whole {
                        conn.blocked = true;
                        conn.note_stall(written, self.now);
                        break self.bound_output(key);
                    }
                    conn.end_stall();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    conn.blocked = true;
                    conn.note_stall(0, self.now);
                    break self.bound_output(key);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Answers may still lie in the socket: it is read to its end first.
                    conn.read_closed = true;
                    conn.write_failed = Some(error.to_string());
                    self.mark_unread(key);
                    break;
                }
            }
        }
        self.on_progress(key);
        self.rearm(key);
        self.count_machine(key);
        // Calls may have waited until the server reads on.
        let relieved = |conn: &super::conn::Conn| conn.h2.has_output_room();
        if let Some(pool) = full
            && self.conns.get(key).is_some_and(relieved)
        {
            self.hunger(pool);
        }
    }

    /// The peer takes no more for now: gives the connection up if it has left too much unread.
    fn bound_output(&mut self, key: ConnKey) {
        let much = |conn: &super::conn::Conn| conn.h2.output().len() > OUTPUT_BYTES;
        if self.conns.get(key).is_some_and(much) {
            self.count(Counter::BoundOutput);
            self.lose(key, "it leaves unread what is written for it");
        }
    }

    /// Has a connection read again in the next turn.
    fn mark_unread(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.unread
        {
            conn.unread = true;
            self.unread.push(key);
        }
    }

    fn list_connections(&self) -> Vec<ConnectionInfo> {
        let info = |conn: &super::conn::Conn| ConnectionInfo {
            worker: self.index,
            kind: conn.down().map_or("upstream", |down| down.role.name()),
            peer: conn.transport.peer(),
            streams: conn.h2.live_streams(),
        };
        self.conns.iter().map(|(_, conn)| info(conn)).collect()
    }

    /// The table of this worker, to be read while the worker changes.
    pub(crate) fn table(&self) -> Arc<crate::route::RouteTable> {
        Arc::clone(&self.table)
    }
}
