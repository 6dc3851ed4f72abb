//! All pools of one worker, and its state of each endpoint: which connection gets the next stream, and which calls wait
//! for one. `dialing` decides when to open another connection. Takes endpoints, accounts and calls by key; gives
//! connections with room, and the calls that can continue or must fail. What a call is does not belong here.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;

use super::dial::Dial;
use super::load::Load;
use super::pool::Pool;
use super::stream_shares::Over;
use crate::arena::Arena;
use crate::balance::Endpoint;
use crate::caller::Account;
use crate::connection::{Conn, Connections};
use crate::keys::{CallKey, ConnKey, PoolKey, PoolKind};
use crate::observe::metrics::WorkerMetrics;
use crate::observe::{Counter, Report};
use crate::settings::WorkerOptions;
use crate::timers::Timers;

/// What pools borrow from the rest of the worker.
#[derive(Debug)]
pub(crate) struct Io<'a> {
    pub(crate) conns: &'a mut Connections,
    pub(crate) timers: &'a mut Timers,
    pub(crate) now: Instant,
    /// New connections use little memory.
    pub(crate) low_memory: bool,
}

/// A dial has failed and no connection is left: the calls that wait in the pool fail too.
#[derive(Debug)]
#[must_use]
pub(crate) struct DialFailed {
    pub(crate) pool: PoolKey,
    pub(crate) why: String,
}

#[derive(Debug)]
pub(crate) struct Pools {
    pub(super) options: Arc<WorkerOptions>,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) reports: mpsc::Sender<Report>,
    /// Receives the other end of connections to the proxy's own services.
    pub(super) internal: mpsc::Sender<UnixStream>,
    pub(super) rng: SmallRng,
    pub(super) arena: Arena<PoolKind, Pool>,
    pub(super) by_dial: FxHashMap<Dial, PoolKey>,
    pub(super) loads: FxHashMap<u64, Load>,
    /// Pools whose waiting calls may have room now.
    pub(super) runnable: Vec<PoolKey>,
    /// Some endpoints or pools may have been dropped from the table.
    pub(super) unswept: bool,
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

    /// The pool of an address, created at its first use.
    pub(crate) fn pool_for(&mut self, dial: Dial) -> Option<PoolKey> {
        if let Some(pool) = self.by_dial.get(&dial) {
            return Some(*pool);
        }
        let pool = self.arena.insert_with(|_| Pool::new(dial.clone()))?;
        self.by_dial.insert(dial, pool);
        Some(pool)
    }

    // ---- endpoints

    /// The pool of an endpoint. The endpoint's state is created at its first use.
    pub(crate) fn pool_of(&mut self, endpoint: &Endpoint) -> Option<PoolKey> {
        if let Some(load) = self.loads.get(&endpoint.uid) {
            return Some(load.pool);
        }
        let pool = self.pool_for(Dial::of(endpoint))?;
        if let Some(pool) = self.arena.get_mut(pool) {
            pool.uids.push(endpoint.uid);
        }
        // A call that was routed by an older table may use an endpoint that has been dropped.
        self.unswept = true;
        self.loads.insert(endpoint.uid, Load::new(pool));
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

    /// The state of all endpoints.
    pub(crate) fn loads_mut(&mut self) -> impl Iterator<Item = &mut Load> {
        self.loads.values_mut()
    }

    /// Whether the pool of an endpoint failed to connect and has no connection. It keeps dialling.
    pub(crate) fn is_unreachable(&self, load: &Load) -> bool {
        self.arena.get(load.pool).is_some_and(Pool::is_unreachable)
    }

    // ---- streams

    /// A connection of the pool with room for one more stream: the first one, since few and full connections batch
    /// better.
    pub(crate) fn room_in(&self, key: PoolKey, conns: &Connections) -> Option<ConnKey> {
        let pool = self.arena.get(key)?;
        let has_room = |key: &ConnKey| conns.get(*key).is_some_and(Conn::has_room);
        pool.conns.iter().copied().find(has_room)
    }

    /// A connection for one more stream of this account. `None` if it has to wait: there is no room, others wait
    /// already, or its share is used up.
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

    /// Which share of the pool's streams is used up: that of the account's service or of its caller.
    pub(crate) fn over_share(&self, pool: &Pool, account: Account) -> Option<Over> {
        let capacity = pool.capacity(self.options.upstream_connections);
        pool.streams.over(account, capacity)
    }

    /// Charges a stream of the pool to this account.
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

    /// Adds a waiting call, and dials if another connection would help.
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

    /// Counts the limit for which a call waits; none if it waits for the first connection or only for the end of the
    /// turn.
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

    /// A call stops waiting in its pool.
    pub(crate) fn stop_waiting(&mut self, key: PoolKey, account: Account, call: CallKey) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.waiting.remove(account, call);
        }
    }

    /// Marks a pool whose waiting calls may have room now.
    pub(crate) fn mark_runnable(&mut self, key: PoolKey) {
        let waits = |pool: &Pool| !pool.waiting.is_empty();
        if self.arena.get(key).is_some_and(waits) && !self.runnable.contains(&key) {
            self.runnable.push(key);
        }
    }

    /// The next pool whose waiting calls may have room.
    #[inline]
    pub(crate) fn next_runnable(&mut self) -> Option<PoolKey> {
        self.runnable.pop()
    }

    /// Takes the next waiting call for which a connection has room.
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

    /// Takes the next waiting call, whatever its share.
    pub(crate) fn next_waiting(&mut self, key: PoolKey) -> Option<CallKey> {
        self.arena.get_mut(key)?.next_of_all()
    }

    /// Removes a connection from its pool: it takes no more calls.
    pub(crate) fn remove_connection(&mut self, key: PoolKey, conn: ConnKey) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.conns.retain(|other| *other != conn);
        }
    }

    // ---- endpoints that the table has dropped

    /// There is a new table, which may lack some endpoints. These ones drain.
    pub(crate) fn on_table(&mut self, draining: &[u64]) {
        self.unswept = true;
        for uid in draining {
            if let Some(load) = self.loads.get_mut(uid) {
                load.drains();
            }
        }
    }

    pub(crate) fn is_swept(&self) -> bool {
        !self.unswept
    }

    /// Removes endpoints that are no longer `known`. Returns the connections to close: those without calls that only
    /// these endpoints used. Connections with calls are left to a later sweep.
    pub(crate) fn sweep(&mut self, known: &FxHashSet<u64>, conns: &Connections) -> Vec<ConnKey> {
        let Self { arena, loads, .. } = self;
        loads.retain(|uid, load| {
            let keep = load.pending() > 0 || known.contains(uid);
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
        let without_instances = |pool: &Pool| pool.uids.is_empty() && pool.dial != Dial::Internal;
        self.unswept = self.loads.keys().any(|uid| !known.contains(uid))
            || self.arena.iter().any(|(_, pool)| without_instances(pool));
    }

    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.loads.len(), self.arena.len())
    }
}
