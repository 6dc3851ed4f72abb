//! The connections to one address of one worker, and the calls that wait for room on them. Calls come in, a
//! connection or a place in the queue goes out; when to dial is decided here, dialling itself is `connect`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use super::backoff::Backoff;
use crate::balance::ewma::PeakEwma;
use crate::balance::{Endpoint, Target};
use crate::exchange::state::Phase;
use crate::observe::Counter;
use crate::observe::load::LocalityLoad;
use crate::worker::Worker;
use crate::worker::arena::Arena;
use crate::worker::conn::{CallKey, ConnKey, PoolKey};
use crate::worker::state::Timer;
use crate::worker::timers::TimerId;

/// Where a pool dials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dial {
    /// An instance of this node.
    Local(SocketAddr),
    /// The inbound listener of a node, which must say that it is that node.
    Node(SocketAddr, Arc<str>),
    /// The control side of this proxy.
    Internal,
}

impl Dial {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        match endpoint.target {
            Target::Local(address) => Self::Local(address),
            Target::Node(address) => Self::Node(address, Arc::clone(&endpoint.node)),
        }
    }

    pub(crate) fn is_link(&self) -> bool {
        matches!(self, Self::Node(..))
    }

    /// For sentences.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Local(address) => address.to_string(),
            Self::Node(address, node) => format!("{address}, the inbound of node {node}"),
            Self::Internal => "the proxy's own services".to_owned(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) dial: Dial,
    pub(crate) conns: Vec<ConnKey>,
    /// Calls in the order they came; those that have gone elsewhere since are skipped.
    pub(crate) waiting: VecDeque<CallKey>,
    /// How many of them still wait.
    pub(crate) live: usize,
    /// Connections that are not ready yet.
    pub(crate) opening: usize,
    pub(crate) backoff: Backoff,
    /// Not before this.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) timer: Option<TimerId>,
    /// Endpoints that are reached here.
    pub(crate) uids: Vec<u64>,
    /// Why the last dial failed.
    pub(crate) last_error: Option<String>,
}

impl Pool {
    /// The last dial failed, and no connection is left.
    pub(crate) fn is_unreachable(&self) -> bool {
        !self.has_ready() && self.retry_at.is_some()
    }

    /// Whether there is a connection that has been opened.
    fn has_ready(&self) -> bool {
        self.conns.len() > self.opening
    }
}

/// What this worker knows of one endpoint.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) ewma: PeakEwma,
    /// Calls sent there or waiting for it.
    pub(crate) pending: u32,
    pub(crate) pool: PoolKey,
    /// Where this node's callers' attempts are counted for load reports; from the first one on.
    pub(crate) reported: Option<Arc<LocalityLoad>>,
}

/// All pools of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pub(crate) arena: Arena<Pool>,
    pub(crate) by_dial: FxHashMap<Dial, PoolKey>,
    /// Calls waiting in all of them.
    pub(crate) pending: usize,
}

impl Worker {
    /// The pool for an address, made at its first use.
    pub(crate) fn pool_for(&mut self, dial: Dial) -> Option<PoolKey> {
        if let Some(pool) = self.pools.by_dial.get(&dial) {
            return Some(*pool);
        }
        let pool = self.pools.arena.insert_with(|_| Pool {
            dial: dial.clone(),
            conns: Vec::new(),
            waiting: VecDeque::new(),
            live: 0,
            opening: 0,
            backoff: Backoff::default(),
            retry_at: None,
            timer: None,
            uids: Vec::new(),
            last_error: None,
        })?;
        self.pools.by_dial.insert(dial, pool);
        Some(pool)
    }

    /// What is known of an endpoint, made at its first use.
    pub(crate) fn load_for(&mut self, endpoint: &Endpoint) -> Option<PoolKey> {
        if let Some(load) = self.loads.get(&endpoint.uid) {
            return Some(load.pool);
        }
        let pool = self.pool_for(Dial::of(endpoint))?;
        if let Some(pool) = self.pools.arena.get_mut(pool) {
            pool.uids.push(endpoint.uid);
        }
        // A call that was routed by an older table may name one that is gone.
        self.unswept = true;
        self.loads.insert(
            endpoint.uid,
            Load {
                ewma: PeakEwma::default(),
                pending: 0,
                pool,
                reported: None,
            },
        );
        Some(pool)
    }

    /// A connection of the pool that takes one more stream: the first, since few and full ones batch better.
    pub(crate) fn room_in(&self, pool: PoolKey) -> Option<ConnKey> {
        let conns = &self.pools.arena.get(pool)?.conns;
        conns.iter().copied().find(|key| {
            self.conns
                .get(*key)
                .is_some_and(super::super::worker::conn::Conn::has_room)
        })
    }

    /// Puts a call at the end of the pool's queue and sees to it that somebody dials.
    pub(crate) fn enqueue(&mut self, key: CallKey, pool_key: PoolKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.phase = Phase::Pending(pool_key);
        if let Some(name) = call
            .service
            .as_ref()
            .map(|service| Arc::clone(&service.name))
        {
            self.service_state(&name).pending += 1;
        }
        self.pools.pending += 1;
        let Some(pool) = self.pools.arena.get_mut(pool_key) else {
            return;
        };
        pool.live += 1;
        if pool.waiting.len() > 64 + 2 * pool.live {
            let calls = &self.calls;
            let waits = |key: &CallKey| {
                calls
                    .get(*key)
                    .is_some_and(|c| c.phase == Phase::Pending(pool_key))
            };
            pool.waiting.retain(waits);
        }
        pool.waiting.push_back(key);
        if self.room_in(pool_key).is_some() {
            self.hunger(pool_key);
        }
        self.dial_if_needed(pool_key);
    }

    /// A call does not wait in its pool any more.
    pub(crate) fn dequeue(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let Phase::Pending(pool) = call.phase else {
            return;
        };
        call.phase = Phase::Backoff;
        self.pools.pending = self.pools.pending.saturating_sub(1);
        if let Some(state) = call
            .service
            .as_ref()
            .and_then(|s| self.services.get_mut(&s.name))
        {
            state.pending = state.pending.saturating_sub(1);
        }
        if let Some(pool) = self.pools.arena.get_mut(pool) {
            pool.live = pool.live.saturating_sub(1);
        }
    }

    /// Opens a connection if calls wait and none is being opened, up to the bound per address.
    pub(crate) fn dial_if_needed(&mut self, key: PoolKey) {
        let (now, bound) = (self.now, self.options().connections_per_endpoint.max(1));
        let Some(pool) = self.pools.arena.get_mut(key) else {
            return;
        };
        if pool.live == 0 || pool.opening > 0 || pool.conns.len() >= bound {
            return;
        }
        match pool.retry_at {
            Some(at) if at > now => {
                if pool.timer.is_none() {
                    pool.timer = Some(self.timers.set(at, Timer::Pool(key)));
                }
            }
            _ => self.connect(key),
        }
    }

    pub(crate) fn on_pool_timer(&mut self, key: PoolKey) {
        let now = self.now;
        let Some(pool) = self.pools.arena.get_mut(key) else {
            return;
        };
        pool.timer = None;
        if let Some(at) = pool.retry_at.filter(|at| *at > now) {
            pool.timer = Some(self.timers.set(at, Timer::Pool(key)));
            return;
        }
        // One more connection could not be made while others stand: once these leave, the address is as good as new.
        if pool.has_ready() {
            pool.retry_at = None;
        }
        // An address that failed is tried again without a call, so that no call has to find out.
        if pool.conns.is_empty() && pool.opening == 0 && !pool.uids.is_empty() {
            return self.connect(key);
        }
        self.dial_if_needed(key);
    }

    /// Marks a pool as one whose waiting calls may find room now.
    pub(crate) fn hunger(&mut self, key: PoolKey) {
        if self.pools.arena.get(key).is_some_and(|pool| pool.live > 0)
            && !self.hungry.contains(&key)
        {
            self.hungry.push(key);
        }
    }

    /// Gives waiting calls the room that has come free in this turn.
    pub(crate) fn feed_pools(&mut self) {
        while let Some(key) = self.hungry.pop() {
            while let Some(conn) = self.room_in(key) {
                let Some(call) = self.next_waiting(key) else {
                    break;
                };
                self.dequeue(call);
                self.send_attempt(call, conn);
            }
            self.dial_if_needed(key);
        }
    }

    pub(crate) fn next_waiting(&mut self, key: PoolKey) -> Option<CallKey> {
        let pool = self.pools.arena.get_mut(key)?;
        let calls = &self.calls;
        std::iter::from_fn(|| pool.waiting.pop_front()).find(|call| {
            calls
                .get(*call)
                .is_some_and(|call| call.phase == Phase::Pending(key))
        })
    }

    /// A connection leaves its pool: it takes no more calls.
    pub(crate) fn leave_pool(&mut self, key: PoolKey, conn: ConnKey) {
        if let Some(pool) = self.pools.arena.get_mut(key) {
            pool.conns.retain(|other| *other != conn);
        }
    }

    /// Forgets endpoints that no table names any more, and closes what only they used.
    pub(crate) fn sweep_upstream(&mut self) {
        if !self.unswept {
            return;
        }
        let table = self.table();
        let known: rustc_hash::FxHashSet<u64> = table
            .services()
            .flat_map(|s| &s.endpoints.endpoints)
            .map(|e| e.uid)
            .collect();
        let gone: Vec<u64> = self
            .loads
            .iter()
            .filter(|(uid, load)| load.pending == 0 && !known.contains(uid))
            .map(|(uid, _)| *uid)
            .collect();
        for uid in gone {
            let Some(load) = self.loads.remove(&uid) else {
                continue;
            };
            if let Some(pool) = self.pools.arena.get_mut(load.pool) {
                pool.uids.retain(|other| *other != uid);
            }
        }
        self.passive.retain(|uid| known.contains(&uid));
        for key in self.pools.arena.keys() {
            self.sweep_pool(key);
        }
        self.services.retain(|name, state| {
            state.pending > 0 || state.held > 0 || table.service(name).is_some()
        });
        // What still has calls goes with a later sweep.
        let deserted = |pool: &Pool| pool.uids.is_empty() && pool.dial != Dial::Internal;
        self.unswept = self.loads.keys().any(|uid| !known.contains(uid))
            || self.pools.arena.iter().any(|(_, pool)| deserted(pool));
    }

    fn sweep_pool(&mut self, key: PoolKey) {
        let Some(pool) = self.pools.arena.get(key) else {
            return;
        };
        if !pool.uids.is_empty() || pool.live > 0 || pool.dial == Dial::Internal {
            return;
        }
        for conn in pool.conns.clone() {
            if self
                .conns
                .get(conn)
                .is_some_and(|conn| conn.calls.is_empty())
            {
                self.retire(conn);
            }
        }
        if self
            .pools
            .arena
            .get(key)
            .is_some_and(|pool| pool.conns.is_empty() && pool.opening == 0)
            && let Some(pool) = self.pools.arena.remove(key)
        {
            self.unset(pool.timer);
            self.pools.by_dial.remove(&pool.dial);
        }
    }

    /// Whether too many calls of a service, or of the proxy's own services, already wait.
    pub(crate) fn pending_full(&mut self, service: Option<&Arc<str>>, pool: PoolKey) -> bool {
        let bound = self.options().pending_calls;
        let waiting = match service {
            Some(service) => self.service_state(service).pending,
            None => self.pools.arena.get(pool).map_or(0, |pool| pool.live),
        };
        let full = waiting >= bound;
        if full {
            self.count(Counter::BoundPending);
        }
        full
    }
}
