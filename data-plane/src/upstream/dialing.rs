//! When a pool dials, and what happens with the results: while calls wait for which no connection has room, and after a
//! backoff if the address has failed. Takes pools; gives connections being opened and failed dials. The socket is in
//! `dial`, the handshake of a link in `link`.

use std::io;
use std::time::{Duration, Instant};

use rand::Rng;

use super::dial::Dial;
use super::pools::{DialFailed, Io, Pools};
use crate::connection::{Conn, Connections, Opened};
use crate::keys::{ConnKey, PoolKey};
use crate::observe::{Counter, Report};
use crate::timers::{Timer, Timers};

/// How long a connection to a local instance may be silent while it has calls. By default gRPC servers close
/// connections that ping more often than every five minutes, and a dead local process closes its socket anyway.
const LOCAL_KEEPALIVE: Duration = Duration::from_secs(330);
/// How long a server may take from accepting to its first settings, and to its answer to Hello. Any live server is much
/// faster. Calls wait meanwhile.
const HANDSHAKE: Duration = Duration::from_secs(2);

impl Pools {
    /// Opens another connection, up to the limit per address, if those being opened are too few for the waiting calls.
    pub(crate) fn dial_if_needed(&mut self, key: PoolKey, io: Io<'_>) -> Option<DialFailed> {
        let most = self.options.upstream_connections.max(1);
        let pool = self.arena.get(key)?;
        if pool.waiting.is_empty() || pool.conns.len() >= most || pool.opening >= pool.wanted() {
            return None;
        }
        // The connection with room gets the next calls at the end of the turn; calls over their share continue to wait.
        if self.room_in(key, io.conns).is_some() {
            return None;
        }
        let pool = self.arena.get_mut(key)?;
        if !pool.has_eligible(most) {
            return None;
        }
        match pool.retry_at {
            Some(at) if at > io.now => {
                if pool.timer.is_none() {
                    pool.timer = Some(io.timers.set(at, Timer::Pool(key)));
                }
                None
            }
            _ => self.dial(key, io),
        }
    }

    /// A pool's timer has fired: it may dial again.
    pub(crate) fn on_timer(&mut self, key: PoolKey, io: Io<'_>) -> Option<DialFailed> {
        let pool = self.arena.get_mut(key)?;
        pool.timer = None;
        if let Some(at) = pool.retry_at.filter(|at| *at > io.now) {
            pool.timer = Some(io.timers.set(at, Timer::Pool(key)));
            return None;
        }
        // An additional connection failed while others are open. When these close, the address counts as reachable.
        if pool.has_ready() {
            pool.retry_at = None;
        }
        // An address that failed is dialled again without waiting for a call, so that no call has to fail on it.
        if pool.conns.is_empty() && pool.opening == 0 && !pool.uids.is_empty() {
            return self.dial(key, io);
        }
        self.dial_if_needed(key, io)
    }

    /// Starts to open another connection of a pool.
    fn dial(&mut self, key: PoolKey, mut io: Io<'_>) -> Option<DialFailed> {
        let pool = self.arena.get_mut(key)?;
        pool.opening += 1;
        self.metrics.counters.add(Counter::Connects);
        match self.open(key, io.conns, io.now, io.low_memory) {
            Ok(conn) => {
                self.rearm(conn, &mut io);
                None
            }
            Err(error) => self.on_dial_failed(key, &error.to_string(), false, io),
        }
    }

    fn open(
        &mut self,
        key: PoolKey,
        conns: &mut Connections,
        now: Instant,
        low_memory: bool,
    ) -> io::Result<ConnKey> {
        let gone = || io::Error::other("its pool is gone");
        let pool = self.arena.get_mut(key).ok_or_else(gone)?;
        let transport = pool.dial.connect(&self.internal)?;
        let link = pool.dial.is_link();
        let keepalive = match link {
            true => self.options.keepalive_interval,
            false => LOCAL_KEEPALIVE,
        };
        let until = now + self.options.connect_timeout;
        let opened = Opened::new(key, link, keepalive, until, now);
        let conn = conns.open(transport, opened, low_memory, now)?;
        pool.conns.push(conn);
        Ok(conn)
    }

    fn rearm(&self, conn: ConnKey, io: &mut Io<'_>) {
        let times = (self.options.upstream_idle, self.options.keepalive_timeout);
        io.conns.rearm(conn, io.timers, times);
    }

    /// Deadline by which a connection that has just been connected must be ready.
    pub(crate) fn ready_by(&self, now: Instant) -> Instant {
        now + self.options.handshake_timeout.min(HANDSHAKE)
    }

    /// A connection of a pool can take calls from now on.
    pub(crate) fn on_ready(&mut self, key: PoolKey, conn: ConnKey, mut io: Io<'_>) {
        if let Some(opened) = io.conns.get_mut(conn).and_then(Conn::opened_mut) {
            opened.become_ready(io.now);
        }
        if let Some(pool) = self.arena.get_mut(key) {
            pool.on_ready();
        }
        self.note_limit(key, conn, io.conns);
        self.mark_runnable(key);
        self.rearm(conn, &mut io);
    }

    /// Stores in the pool how many streams the peer allows on a connection.
    pub(crate) fn note_limit(&mut self, key: PoolKey, conn: ConnKey, conns: &Connections) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.limit = conns.get(conn).map(Conn::stream_limit);
        }
    }

    /// A dial failed, or a connection before it was ready: the pool waits before the next dial.
    pub(crate) fn on_dial_failed(
        &mut self,
        key: PoolKey,
        why: &str,
        refused: bool,
        io: Io<'_>,
    ) -> Option<DialFailed> {
        self.metrics.counters.add(Counter::ConnectFailures);
        let random = self.rng.random();
        let pool = self.arena.get_mut(key)?;
        pool.opening = pool.opening.saturating_sub(1);
        let at = io.now + pool.backoff.fail_with(random);
        pool.retry_at = Some(at);
        if pool.timer.is_none() {
            pool.timer = Some(io.timers.set(at, Timer::Pool(key)));
        }
        pool.last_error = Some(why.to_owned());
        let others = !pool.conns.is_empty();
        if refused {
            self.report(key, |uid| Report::EndpointRefused { uid });
        }
        if others {
            return self.dial_if_needed(key, io);
        }
        Some(DialFailed {
            pool: key,
            why: why.to_owned(),
        })
    }

    /// A connection that was ready was lost.
    pub(crate) fn report_lost(&self, key: PoolKey) {
        self.report(key, |uid| Report::EndpointLost { uid });
    }

    /// Sends a report about the instances at a local address to the control side.
    fn report(&self, key: PoolKey, what: impl Fn(u64) -> Report) {
        let Some(pool) = self.arena.get(key) else {
            return;
        };
        if matches!(pool.dial, Dial::Local(_)) {
            for uid in &pool.uids {
                // If the channel is full, the agent is busy; its own health checks will notice too.
                let _ = self.reports.try_send(what(*uid));
            }
        }
    }

    /// After a panic: marks all pools to be checked again. If the timer of a pool fired in that turn, its work may be
    /// lost, so the timer is set again.
    pub(crate) fn recover(&mut self, timers: &mut Timers, at: Instant) {
        for key in self.arena.keys() {
            self.mark_runnable(key);
            if let Some(pool) = self.arena.get_mut(key)
                && pool.timer.is_none()
                && pool.retry_at.is_some()
            {
                pool.timer = Some(timers.set(at, Timer::Pool(key)));
            }
        }
    }
}
