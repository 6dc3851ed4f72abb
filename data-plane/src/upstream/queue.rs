//! The calls that wait for a stream in a pool: who gets a place, how long they may wait, and what they are told when
//! they have waited long enough. Calls come in, are sent when a stream is free for them, or end with a reason that
//! names the limit which held them. When to dial is `pool`, whose turn it is `waiting`.

use heddle_proto::Reason;

use super::account::{Over, Streams};
use super::pool::Pool;
use super::waiting::{Anybody, Eligible};
use crate::caller::Account;
use crate::connection::Conn;
use crate::exchange::state::{Call, Phase};
use crate::exchange::waiting_places::{NoPlace, place};
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey, PoolKey};
use crate::observe::Counter;
use crate::timers::Timer;
use crate::worker::Worker;

/// Whoever is within its share of a pool's streams.
struct WithinShare<'p> {
    streams: &'p Streams,
    capacity: usize,
    ample: bool,
}

impl Eligible for WithinShare<'_> {
    fn service(&self, service: u32) -> bool {
        self.ample || self.streams.admits_service(service, self.capacity)
    }

    fn caller(&self, caller: ConnKey) -> bool {
        self.ample || self.streams.admits_caller(caller, self.capacity)
    }
}

impl Pool {
    fn within_share(streams: &Streams, capacity: usize) -> WithinShare<'_> {
        WithinShare {
            streams,
            capacity,
            ample: streams.is_ample(capacity),
        }
    }

    /// Whether a call waits that another connection would help: not one that its share holds back.
    pub(super) fn has_eligible(&self, most: usize) -> bool {
        let who = Self::within_share(&self.streams, self.capacity(most));
        self.waiting.has_eligible(&who)
    }

    fn next_eligible(&mut self, most: usize) -> Option<CallKey> {
        let capacity = self.capacity(most);
        let who = Self::within_share(&self.streams, capacity);
        self.waiting.next(&who)
    }
}

impl Worker {
    /// A connection for one more stream of this account, if it need not wait: nobody else waits, and it is within its
    /// share.
    pub(crate) fn stream_for(&mut self, account: Account, pool_key: PoolKey) -> Option<ConnKey> {
        let most = self.options().upstream_connections;
        let pool = self.pools.arena.get(pool_key)?;
        if !pool.waiting.is_empty() {
            return None;
        }
        let over = pool.streams.over(account, pool.capacity(most));
        match over {
            None => self.room_in(pool_key),
            Some(_) => None,
        }
    }

    /// Lets a call wait for a stream of the pool, or refuses it if too many wait.
    pub(crate) fn wait_for_stream(&mut self, key: CallKey, pool_key: PoolKey) {
        let bound = self.options().pending_calls;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let places = self.pools.places.entry(call.account.service).or_default();
        match place(places, call.account.caller, bound) {
            Ok(()) => self.enqueue(key, pool_key),
            Err(no_place) => self.refuse_place(key, pool_key, no_place),
        }
    }

    fn refuse_place(&mut self, key: CallKey, pool_key: PoolKey, no_place: NoPlace) {
        self.count(no_place.counter());
        let text = format!(
            "{} for a stream to {}",
            no_place.text(),
            self.target_with_address(key, pool_key)
        );
        let failure = self.blame(key, Failure::new(Reason::Overloaded, text));
        self.fail(key, &failure);
    }

    /// Puts a call into the pool's queue and sees to it that somebody dials.
    pub(crate) fn enqueue(&mut self, key: CallKey, pool_key: PoolKey) {
        let (now, longest) = (self.now, self.options().pending_timeout);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let Some(pool) = self.pools.arena.get_mut(pool_key) else {
            return;
        };
        let account = call.account;
        call.phase = Phase::Pending(pool_key);
        // One that lost its stream again in the moment it was given has waited since before.
        let since = *call.waits_since.get_or_insert(now);
        let timer = self.timers.set(since + longest, Timer::Wait(key));
        let old = call.wait_timer.replace(timer);
        pool.waiting.push(account, key);
        self.pools.pending += 1;
        let places = self.pools.places.entry(account.service).or_default();
        places.add(&account.caller, 1);
        self.unset(old);
        let room = self.room_in(pool_key).is_some();
        self.count_bound(pool_key, account, room);
        if room {
            self.mark_runnable(pool_key);
        }
        self.dial_if_needed(pool_key);
    }

    /// Counts which bound a call waits for; none if it waits for the first connection, or for the next turn.
    fn count_bound(&self, pool_key: PoolKey, account: Account, room: bool) {
        let most = self.options().upstream_connections;
        let Some(pool) = self.pools.arena.get(pool_key) else {
            return;
        };
        if !room && pool.opening == 0 && pool.conns.len() >= most {
            self.count(Counter::BoundUpstreamStreams);
        } else if pool.streams.over(account, pool.capacity(most)).is_some() {
            self.count(Counter::BoundStreamShare);
        }
    }

    /// A call does not wait in its pool any more.
    pub(crate) fn dequeue(&mut self, key: CallKey) {
        let call = self.calls.get(key);
        let Some((Phase::Pending(pool), account)) = call.map(|call| (call.phase, call.account))
        else {
            return;
        };
        if let Some(pool) = self.pools.arena.get_mut(pool) {
            pool.waiting.remove(account, key);
        }
        self.leave_place(key);
    }

    /// The call whose turn it was leaves its place.
    pub(crate) fn leave_place(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (account, timer) = (call.account, call.wait_timer.take());
        call.phase = Phase::Backoff;
        self.unset(timer);
        self.pools.pending = self.pools.pending.saturating_sub(1);
        if let Some(places) = self.pools.places.get_mut(&account.service) {
            places.sub(&account.caller, 1);
            if places.total() == 0 {
                self.pools.places.remove(&account.service);
            }
        }
    }

    /// Gives waiting calls the streams that have come free in this turn.
    pub(crate) fn feed_pools(&mut self) {
        let most = self.options().upstream_connections;
        while let Some(key) = self.runnable.pop() {
            while let Some(conn) = self.room_in(key) {
                let next = self.pools.arena.get_mut(key);
                let Some(call) = next.and_then(|pool| pool.next_eligible(most)) else {
                    break;
                };
                self.leave_place(call);
                self.send_attempt(call, conn);
            }
            self.dial_if_needed(key);
        }
    }

    /// Takes out the next of all that wait, whoever it is.
    pub(crate) fn next_waiting(&mut self, key: PoolKey) -> Option<CallKey> {
        let call = self.pools.arena.get_mut(key)?.waiting.next(&Anybody)?;
        self.leave_place(call);
        Some(call)
    }

    /// A call has waited in a pool for as long as any may.
    pub(crate) fn on_pending_timeout(&mut self, key: CallKey, pool: PoolKey) {
        self.count(Counter::BoundPendingTimeout);
        let (reason, held) = self.what_holds(key, pool);
        let text = format!("waited {:?} {held}", self.options().pending_timeout);
        let failure = self.blame(key, Failure::new(reason, text));
        self.fail(key, &failure);
    }

    /// What a call that waits in a pool waits for, and the limit that holds it: for sentences after "waited".
    pub(crate) fn what_holds(&self, key: CallKey, pool_key: PoolKey) -> (Reason, String) {
        let target = self.target_with_address(key, pool_key);
        let call = self.calls.get(key);
        let (Some(call), Some(pool)) = (call, self.pools.arena.get(pool_key)) else {
            return (Reason::Overloaded, format!("for a free stream to {target}"));
        };
        if !pool.has_ready() {
            let error = pool.last_error.as_deref();
            let why = error.map_or_else(String::new, |error| format!(": {error}"));
            let text = format!("for a connection to {target}{why}");
            return (Reason::ConnectFailed, text);
        }
        let text = format!(
            "for a free stream to {target}: {}",
            self.limit_text(pool_key, pool, call)
        );
        (Reason::Overloaded, text)
    }

    /// The limit that holds a call back from the streams of an open connection.
    fn limit_text(&self, key: PoolKey, pool: &Pool, call: &Call) -> String {
        let most = self.options().upstream_connections;
        let capacity = pool.capacity(most);
        let share = |whose: &str, used: usize| {
            format!(
                "{whose} has {used} of the {capacity} streams that {most} connections may carry, its share; \
                 --upstream-connections"
            )
        };
        let over = pool.streams.over(call.account, capacity);
        match over.filter(|_| self.room_in(key).is_some()) {
            Some(Over::Caller(used)) => return share("the caller's connection", used),
            Some(Over::Service(used)) => {
                return share(call.service_name().unwrap_or("the service"), used);
            }
            None => {}
        }
        let streams = match pool.limit {
            Some(0) => return "it allows no stream at all now".to_owned(),
            Some(u32::MAX) | None => "all their streams".to_owned(),
            Some(limit) => format!("their limit of {limit} streams"),
        };
        let has_slots = |key: &ConnKey| {
            let conn = self.conns.get(*key);
            conn.is_some_and(Conn::is_held_by_output)
        };
        if pool.conns.iter().any(has_slots) {
            return "it leaves unread what was sent before".to_owned();
        }
        if pool.conns.len() >= most {
            return format!("all {most} connections have {streams} in use; --upstream-connections");
        }
        let why = pool.last_error.as_deref();
        let why = why.unwrap_or("it is being opened");
        let count = pool.conns.len() - pool.opening;
        format!(
            "all {count} connections have {streams} in use, and no other could be opened yet: {why}"
        )
    }

    /// For sentences: whom a call is for, and at which address.
    fn target_with_address(&self, key: CallKey, pool: PoolKey) -> String {
        let target = self.calls.get(key).map(Call::target_name);
        let target = target.unwrap_or_default();
        match self.pools.arena.get(pool).map(|pool| pool.dial.name()) {
            Some(address) => format!("{target} ({address})"),
            None => target,
        }
    }

    /// A stream of the pool that was charged to this account has ended.
    pub(crate) fn give_stream(&mut self, pool: PoolKey, account: Account) {
        if let Some(pool) = self.pools.arena.get_mut(pool) {
            pool.streams.give(account);
        }
    }

    /// A connection leaves its pool: its streams take none of those that the pool may have.
    pub(crate) fn give_streams_of(&mut self, pool_key: PoolKey, conn: ConnKey) {
        let Some(pool) = self.pools.arena.get_mut(pool_key) else {
            return;
        };
        let Some(conn_of) = self.conns.get_mut(conn) else {
            return;
        };
        for call in conn_of.calls() {
            let Some(call) = self.calls.get_mut(*call) else {
                continue;
            };
            let account = call.account;
            let charged = call.up.as_mut().filter(|up| up.conn == conn);
            if charged.is_some_and(|up| std::mem::take(&mut up.charged)) {
                pool.streams.give(account);
            }
        }
        for account in conn_of.uncharge_cancels() {
            pool.streams.give(account);
        }
    }
}
