//! All pools of one worker, and what it knows of each endpoint: which connection takes the next stream, and who waits for
//! one. When another connection is opened is `dialing`. Endpoints, accounts and calls by key come in; connections with room, and the calls that can go
//! on or have to fail, go out. What a call is may not come in.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;

use super::account::Over;
use super::dial::Dial;
use super::pool::Pool;
use crate::arena::Arena;
use crate::balance::Endpoint;
use crate::balance::ewma::PeakEwma;
use crate::caller::Account;
use crate::connection::{Conn, Connections};
use crate::keys::{CallKey, ConnKey, PoolKey, PoolKind};
use crate::observe::load::LocalityLoad;
use crate::observe::metrics::WorkerMetrics;
use crate::observe::{Counter, Report};
use crate::settings::WorkerOptions;
use crate::timers::Timers;

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
    pub(super) options: Arc<WorkerOptions>,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) reports: mpsc::Sender<Report>,
    /// Takes the far end of connections to the proxy's own services.
    pub(super) internal: mpsc::Sender<UnixStream>,
    pub(super) rng: SmallRng,
    pub(super) arena: Arena<PoolKind, Pool>,
    pub(super) by_dial: FxHashMap<Dial, PoolKey>,
    pub(super) loads: FxHashMap<u64, Load>,
    /// Pools whose waiting calls may find room.
    pub(super) runnable: Vec<PoolKey>,
    /// Some endpoints or pools may have left the table.
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

    /// A connection leaves its pool: it takes no more calls.
    pub(crate) fn remove_connection(&mut self, key: PoolKey, conn: ConnKey) {
        if let Some(pool) = self.arena.get_mut(key) {
            pool.conns.retain(|other| *other != conn);
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
}
