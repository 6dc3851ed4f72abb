//! All pools of one worker, and what it knows of each endpoint: which connection takes the next stream, when another is
//! dialed, and who waits. Endpoints, accounts and calls by key come in; connections with room, and the calls that can go
//! on or have to fail, go out. What a call is may not come in.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;

use super::account::Over;
use super::dial::Dial;
use super::pool::Pool;
use crate::arena::Arena;
use crate::balance::Endpoint;
use crate::balance::ewma::PeakEwma;
use crate::caller::Account;
use crate::connection::{Conn, Connections, Opened};
use crate::keys::{CallKey, ConnKey, PoolKey, PoolKind};
use crate::observe::load::LocalityLoad;
use crate::observe::metrics::WorkerMetrics;
use crate::observe::{Counter, Report};
use crate::settings::WorkerOptions;
use crate::timers::{Timer, Timers};

/// How long a connection to a local instance may be silent while it has calls. gRPC servers by default close
/// connections that ping more often than every five minutes; a dead local process closes its socket anyway.
const LOCAL_KEEPALIVE: Duration = Duration::from_secs(330);
/// How long a server may take from accepting to its first settings (and to the answer to Hello). Far longer than
/// any living one takes; calls wait meanwhile.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// What pools work with that belongs to others.
#[derive(Debug)]
pub(crate) struct Io<'a> {
    pub(crate) conns: &'a mut Connections,
    pub(crate) timers: &'a mut Timers,
    pub(crate) now: Instant,
    /// New connections do with little memory.
    pub(crate) frugal: bool,
}

/// A dial has failed, and no connection is left: the calls that wait in the pool fail with it.
#[derive(Debug)]
#[must_use]
pub(crate) struct DialFailed {
    pub(crate) pool: PoolKey,
    pub(crate) why: String,
}

/// What this worker knows of one endpoint.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) ewma: PeakEwma,
    /// Calls sent there or waiting for it.
    pub(crate) pending: u32,
    pool: PoolKey,
    /// Where this node's callers' attempts are counted for load reports; from the first one on.
    pub(crate) reported: Option<Arc<LocalityLoad>>,
}

#[derive(Debug)]
pub(crate) struct Pools {
    options: Arc<WorkerOptions>,
    metrics: Arc<WorkerMetrics>,
    reports: mpsc::Sender<Report>,
    /// Takes the far end of connections to the proxy's own services.
    internal: mpsc::Sender<UnixStream>,
    rng: SmallRng,
    arena: Arena<PoolKind, Pool>,
    by_dial: FxHashMap<Dial, PoolKey>,
    loads: FxHashMap<u64, Load>,
    /// Pools whose waiting calls may find room.
    runnable: Vec<PoolKey>,
    /// Some endpoints or pools may have left the table.
    unswept: bool,
}

impl Pools {
    pub(crate) fn new(
        options: Arc<WorkerOptions>,
        metrics: Arc<WorkerMetrics>,
        reports: mpsc::Sender<Report>,
        internal: mpsc::Sender<UnixStream>,
    ) -> Self {
        Self {
            options,
            metrics,
            reports,
            internal,
            rng: SmallRng::from_os_rng(),
            arena: Arena::default(),
            by_dial: FxHashMap::default(),
            loads: FxHashMap::default(),
            runnable: Vec::new(),
            unswept: false,
        }
    }

    pub(crate) fn get(&self, key: PoolKey) -> Option<&Pool> {
        self.arena.get(key)
    }

    /// The pool for an address, made at its first use.
    pub(crate) fn pool_for(&mut self, dial: Dial) -> Option<PoolKey> {
        if let Some(pool) = self.by_dial.get(&dial) {
            return Some(*pool);
        }
        let pool = self.arena.insert_with(|_| Pool::new(dial.clone()))?;
        self.by_dial.insert(dial, pool);
        Some(pool)
    }

    // ---- endpoints

    /// The pool of an endpoint; what is known of the endpoint is made at its first use.
    pub(crate) fn pool_of(&mut self, endpoint: &Endpoint) -> Option<PoolKey> {
        if let Some(load) = self.loads.get(&endpoint.uid) {
            return Some(load.pool);
        }
        let pool = self.pool_for(Dial::of(endpoint))?;
        if let Some(pool) = self.arena.get_mut(pool) {
            pool.uids.push(endpoint.uid);
        }
        // A call that was routed by an older table may name one that is gone.
        self.unswept = true;
        let load = Load {
            ewma: PeakEwma::default(),
            pending: 0,
            pool,
            reported: None,
        };
        self.loads.insert(endpoint.uid, load);
        Some(pool)
    }

    #[inline]
    pub(crate) fn load(&self, uid: u64) -> Option<&Load> {
        self.loads.get(&uid)
    }

    #[inline]
    pub(crate) fn load_mut(&mut self, uid: u64) -> Option<&mut Load> {
        self.loads.get_mut(&uid)
    }

    /// What is known of all endpoints.
    pub(crate) fn loads_mut(&mut self) -> impl Iterator<Item = &mut Load> {
        self.loads.values_mut()
    }

    /// The pool that an endpoint is reached by has failed to connect and has no connection: it tries by itself.
    pub(crate) fn is_unreachable(&self, load: &Load) -> bool {
        self.arena.get(load.pool).is_some_and(Pool::is_unreachable)
    }

    // ---- streams

    /// A connection of the pool that takes one more stream: the first, since few and full ones batch better.
    pub(crate) fn room_in(&self, key: PoolKey, conns: &Connections) -> Option<ConnKey> {
        let pool = self.arena.get(key)?;
        let has_room = |key: &ConnKey| conns.get(*key).is_some_and(Conn::has_room);
        pool.conns.iter().copied().find(has_room)
    }

    /// A connection for one more stream of this account, if it need not wait: nobody else waits, and it is within its
    /// share.
    pub(crate) fn stream_for(
        &self,
        account: Account,
        key: PoolKey,
        conns: &Connections,
    ) -> Option<ConnKey> {
        let pool = self.arena.get(key)?;
        if !pool.waiting.is_empty() || self.over_share(pool, account).is_some() {
            return None;
        }
        self.room_in(key, conns)
    }

    /// Whose share of the pool's streams is used up, of the account's service and caller.
    pub(crate) fn over_share(&self, pool: &Pool, account: Account) -> Option<Over> {
        let capacity = pool.capacity(self.options.upstream_connections);
        pool.streams.over(account, capacity)
    }

    /// A stream of the pool is charged to this account.
    pub(crate) fn take_stream(&mut self, key: PoolKey, account: Account) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.streams.take(account);
        }
    }

    /// A stream of the pool that was charged to this account has ended.
    pub(crate) fn give_stream(&mut self, key: PoolKey, account: Account) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.streams.give(account);
        }
    }

    // ---- waiting calls

    /// Adds a call to those that wait, and dials if another connection would help.
    pub(crate) fn wait(
        &mut self,
        key: PoolKey,
        account: Account,
        call: CallKey,
        io: Io<'_>,
    ) -> Option<DialFailed> {
        self.arena.get_mut(key)?.waiting.push(account, call);
        let room = self.room_in(key, io.conns).is_some();
        self.count_bound(key, account, room);
        if room {
            self.mark_runnable(key);
        }
        self.dial_if_needed(key, io)
    }

    /// Counts which bound a call waits for; none if it waits for the first connection, or for the next turn.
    fn count_bound(&self, key: PoolKey, account: Account, room: bool) {
        let most = self.options.upstream_connections;
        let Some(pool) = self.arena.get(key) else {
            return;
        };
        if !room && pool.opening == 0 && pool.conns.len() >= most {
            self.metrics.counters.add(Counter::BoundUpstreamStreams);
        } else if self.over_share(pool, account).is_some() {
            self.metrics.counters.add(Counter::BoundStreamShare);
        }
    }

    /// A call does not wait in its pool any more.
    pub(crate) fn stop_waiting(&mut self, key: PoolKey, account: Account, call: CallKey) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.waiting.remove(account, call);
        }
    }

    /// Marks a pool as one whose waiting calls may find room now.
    pub(crate) fn mark_runnable(&mut self, key: PoolKey) {
        let waits = |pool: &Pool| !pool.waiting.is_empty();
        if self.arena.get(key).is_some_and(waits) && !self.runnable.contains(&key) {
            self.runnable.push(key);
        }
    }

    /// The next pool whose waiting calls may find room.
    #[inline]
    pub(crate) fn next_runnable(&mut self) -> Option<PoolKey> {
        self.runnable.pop()
    }

    /// Takes out the next waiting call that a connection has room for.
    pub(crate) fn next_ready(
        &mut self,
        key: PoolKey,
        conns: &Connections,
    ) -> Option<(CallKey, ConnKey)> {
        let conn = self.room_in(key, conns)?;
        let most = self.options.upstream_connections;
        let call = self.arena.get_mut(key)?.next_eligible(most)?;
        Some((call, conn))
    }

    /// Takes out the next of all that wait, whoever it is.
    pub(crate) fn next_waiting(&mut self, key: PoolKey) -> Option<CallKey> {
        self.arena.get_mut(key)?.next_of_all()
    }

    // ---- connections

    /// Opens a connection if calls wait that those being opened are too few for, up to the bound per address.
    pub(crate) fn dial_if_needed(&mut self, key: PoolKey, io: Io<'_>) -> Option<DialFailed> {
        let most = self.options.upstream_connections.max(1);
        let pool = self.arena.get(key)?;
        if pool.waiting.is_empty() || pool.conns.len() >= most || pool.opening >= pool.wanted() {
            return None;
        }
        // What has room takes the next ones at the end of the turn, and those that their share holds back wait on.
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

    /// The timer of a pool has fired: it may dial again.
    pub(crate) fn on_timer(&mut self, key: PoolKey, io: Io<'_>) -> Option<DialFailed> {
        let pool = self.arena.get_mut(key)?;
        pool.timer = None;
        if let Some(at) = pool.retry_at.filter(|at| *at > io.now) {
            pool.timer = Some(io.timers.set(at, Timer::Pool(key)));
            return None;
        }
        // One more connection could not be made while others stand: once these leave, the address is as good as new.
        if pool.has_ready() {
            pool.retry_at = None;
        }
        // An address that failed is tried again without a call, so that no call has to find out.
        if pool.conns.is_empty() && pool.opening == 0 && !pool.uids.is_empty() {
            return self.dial(key, io);
        }
        self.dial_if_needed(key, io)
    }

    /// Starts to open one more connection of a pool.
    fn dial(&mut self, key: PoolKey, mut io: Io<'_>) -> Option<DialFailed> {
        let pool = self.arena.get_mut(key)?;
        pool.opening += 1;
        self.metrics.counters.add(Counter::Connects);
        match self.open(key, io.conns, io.now, io.frugal) {
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
        frugal: bool,
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
        let conn = conns.open(transport, opened, frugal, now)?;
        pool.conns.push(conn);
        Ok(conn)
    }

    fn rearm(&self, conn: ConnKey, io: &mut Io<'_>) {
        let times = (self.options.upstream_idle, self.options.keepalive_timeout);
        io.conns.rearm(conn, io.timers, times);
    }

    /// When a connection that is connected now has to be ready.
    pub(crate) fn ready_by(&self, now: Instant) -> Instant {
        now + self.options.handshake_timeout.min(HANDSHAKE)
    }

    /// A connection of a pool takes calls from now on.
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

    /// Keeps in the pool how many streams the peer allows on a connection.
    pub(crate) fn note_limit(&mut self, key: PoolKey, conn: ConnKey, conns: &Connections) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.limit = conns.get(conn).map(Conn::stream_limit);
        }
    }

    /// A dial has failed, or a connection before it was ready: the pool waits before the next one.
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

    /// A connection that was ready broke.
    pub(crate) fn report_lost(&self, key: PoolKey) {
        self.report(key, |uid| Report::EndpointLost { uid });
    }

    /// Tells the control side of the instances at a local address.
    fn report(&self, key: PoolKey, what: impl Fn(u64) -> Report) {
        let Some(pool) = self.arena.get(key) else {
            return;
        };
        if matches!(pool.dial, Dial::Local(_)) {
            for uid in &pool.uids {
                // A full channel means that the agent has much to do: its own checks find out too.
                let _ = self.reports.try_send(what(*uid));
            }
        }
    }

    /// A connection leaves its pool: it takes no more calls.
    pub(crate) fn remove_connection(&mut self, key: PoolKey, conn: ConnKey) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.conns.retain(|other| *other != conn);
        }
    }

    /// After a panic: all pools are looked at again. The timer of one that fired in the turn that panicked may have done
    /// nothing, so it is set anew.
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

    // ---- what the table does not name any more

    /// There is a new table, which may have dropped endpoints.
    pub(crate) fn on_table(&mut self) {
        self.unswept = true;
    }

    pub(crate) fn is_swept(&self) -> bool {
        !self.unswept
    }

    /// Forgets endpoints that are not `known` any more. Returns the connections without calls that only they used, which
    /// are to be closed; what still has calls goes with a later sweep.
    pub(crate) fn sweep(&mut self, known: &FxHashSet<u64>, conns: &Connections) -> Vec<ConnKey> {
        let Self { arena, loads, .. } = self;
        loads.retain(|uid, load| {
            let keep = load.pending > 0 || known.contains(uid);
            if !keep && let Some(pool) = arena.get_mut(load.pool) {
                pool.uids.retain(|other| other != uid);
            }
            keep
        });
        let unused = self.arena.iter().filter(|(_, pool)| pool.is_unused());
        let idle = |key: &ConnKey| conns.get(*key).is_some_and(|conn| conn.calls().is_empty());
        unused
            .flat_map(|(_, pool)| pool.conns.iter().copied().filter(idle))
            .collect()
    }

    /// Removes unused pools that have no connection left.
    pub(crate) fn end_sweep(&mut self, known: &FxHashSet<u64>, timers: &mut Timers) {
        for key in self.arena.keys() {
            let gone = |pool: &Pool| pool.is_unused() && pool.conns.is_empty() && pool.opening == 0;
            if self.arena.get(key).is_some_and(gone)
                && let Some(pool) = self.arena.remove(key)
            {
                self.by_dial.remove(&pool.dial);
                if let Some(timer) = pool.timer {
                    timers.unset(timer);
                }
            }
        }
        let deserted = |pool: &Pool| pool.uids.is_empty() && pool.dial != Dial::Internal;
        self.unswept = self.loads.keys().any(|uid| !known.contains(uid))
            || self.arena.iter().any(|(_, pool)| deserted(pool));
    }

    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.loads.len(), self.arena.len())
    }

    #[cfg(test)]
    pub(crate) fn pool_mut(&mut self, key: PoolKey) -> Option<&mut Pool> {
        self.arena.get_mut(key)
    }
}
