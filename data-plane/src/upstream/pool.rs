//! The connections to one address of one worker: few and full ones while they do, up to the bound as long as calls
//! wait for a stream. Endpoints come in, a connection with room goes out; when to dial is decided here, dialling
//! itself is `connect`, and the calls that wait are `queue`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_pacing::Backoff;
use rustc_hash::FxHashMap;

use super::account::Streams;
use super::waiting::Waiting;
use crate::arena::Arena;
use crate::balance::ewma::PeakEwma;
use crate::balance::{Endpoint, Target};
use crate::connection::Conn;
use crate::keys::{ConnKey, PoolKey, PoolKind};
use crate::observe::load::LocalityLoad;
use crate::policy::Shares;
use crate::timers::Timer;
use crate::timers::TimerId;
use crate::worker::Worker;

/// How long an address rests after its first failed dial, and at the most.
const FIRST_REDIAL: Duration = Duration::from_millis(50);
const LAST_REDIAL: Duration = Duration::from_secs(3);
/// What HTTP/2 recommends a peer to allow at least (RFC 9113 §6.5.2), until it has said so.
const UNKNOWN_LIMIT: u32 = 100;

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
    /// Calls that wait for a stream.
    pub(crate) waiting: Waiting,
    /// Streams in use, by whose calls.
    pub(crate) streams: Streams,
    /// How many streams the peer allows on a connection, as it said last.
    pub(crate) limit: Option<u32>,
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
    pub(crate) fn has_ready(&self) -> bool {
        self.conns.len() > self.opening
    }

    /// How many streams all connections may carry, if there are as many as there may be.
    pub(crate) fn capacity(&self, most_connections: usize) -> usize {
        let limit = usize::try_from(self.limit.unwrap_or(UNKNOWN_LIMIT)).unwrap_or(usize::MAX);
        most_connections.max(1).saturating_mul(limit)
    }

    /// How many connections may be under way at once for the calls that wait.
    fn wanted(&self) -> usize {
        match self.limit {
            // Whether one is enough is known once it has been opened.
            _ if self.conns.len() == self.opening => 1,
            None => 1,
            // Its peer wants no calls, and says so when that changes.
            Some(0) => 0,
            Some(limit) => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                self.waiting.len().div_ceil(limit)
            }
        }
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
    pub(crate) arena: Arena<PoolKind, Pool>,
    pub(crate) by_dial: FxHashMap<Dial, PoolKey>,
    /// Calls waiting in all of them.
    pub(crate) pending: usize,
    /// The same by service, and there by caller; none is kept without a waiting call.
    pub(crate) places: FxHashMap<u32, Shares<ConnKey>>,
}

impl Worker {
    /// The pool for an address, made at its first use.
    pub(crate) fn pool_for(&mut self, dial: Dial) -> Option<PoolKey> {
        if let Some(pool) = self.pools.by_dial.get(&dial) {
            return Some(*pool);
        }
        let pool = self.pools.arena.insert_with(|_| Pool {
            streams: Streams::new(dial.is_link()),
            limit: None,
            dial: dial.clone(),
            conns: Vec::new(),
            waiting: Waiting::default(),
            opening: 0,
            backoff: Backoff::new(FIRST_REDIAL, LAST_REDIAL),
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
        conns
            .iter()
            .copied()
            .find(|key| self.conns.get(*key).is_some_and(Conn::has_room))
    }

    /// Opens a connection if calls wait that those being opened are too few for, up to the bound per address.
    pub(crate) fn dial_if_needed(&mut self, key: PoolKey) {
        let (now, most) = (self.now, self.options().upstream_connections.max(1));
        let Some(pool) = self.pools.arena.get_mut(key) else {
            return;
        };
        if pool.waiting.is_empty() || pool.conns.len() >= most || pool.opening >= pool.wanted() {
            return;
        }
        // What has room takes the next ones at the end of the turn, and those that their share holds back wait on.
        if self.room_in(key).is_some() {
            return;
        }
        let Some(pool) = self
            .pools
            .arena
            .get_mut(key)
            .filter(|pool| pool.has_eligible(most))
        else {
            return;
        };
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
    pub(crate) fn mark_runnable(&mut self, key: PoolKey) {
        let waits = |pool: &Pool| !pool.waiting.is_empty();
        if self.pools.arena.get(key).is_some_and(waits) && !self.runnable.contains(&key) {
            self.runnable.push(key);
        }
    }

    /// A connection leaves its pool: it takes no more calls.
    pub(crate) fn leave_pool(&mut self, key: PoolKey, conn: ConnKey) {
        self.give_streams_of(key, conn);
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
        self.services.retain(|name| table.service(name).is_some());
        // What still has calls goes with a later sweep.
        let deserted = |pool: &Pool| pool.uids.is_empty() && pool.dial != Dial::Internal;
        self.unswept = self.loads.keys().any(|uid| !known.contains(uid))
            || self.pools.arena.iter().any(|(_, pool)| deserted(pool));
    }

    fn sweep_pool(&mut self, key: PoolKey) {
        let Some(pool) = self.pools.arena.get(key) else {
            return;
        };
        if !pool.uids.is_empty() || !pool.waiting.is_empty() || pool.dial == Dial::Internal {
            return;
        }
        for conn in pool.conns.clone() {
            if self
                .conns
                .get(conn)
                .is_some_and(|conn| conn.calls().is_empty())
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
}
