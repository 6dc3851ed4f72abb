//! Calls that wait for a stream in a pool: which of them may, how long they may wait, and the reason if they
//! wait too long, which names the limit. The pool decides which call is next.

use heddle_proto::{Reason, count};

use crate::connection::Conn;
use crate::exchange::admission::QueueFull;
use crate::exchange::call::Call;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey, PoolKey};
use crate::observe::Counter;
use crate::timers::Timer;
use crate::upstream::pool::Pool;
use crate::upstream::stream_shares::Over;

impl Exchange {
    /// Makes a call wait for a stream of the pool, or refuses it if too many wait.
    pub(super) fn wait_for_stream(&mut self, key: CallKey, pool_key: PoolKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        match self.admission.may_wait_for_stream(call.account()) {
            Ok(()) => self.enqueue(key, pool_key),
            Err(full) => self.refuse_wait(key, pool_key, full),
        }
    }

    fn refuse_wait(&mut self, key: CallKey, pool_key: PoolKey, full: QueueFull) {
        self.count(full.counter());
        let text = format!(
            "{} for a stream to {}",
            full.text(),
            self.target_with_address(key, pool_key)
        );
        let failure = self.mark_unprocessed(key, Failure::new(Reason::Overloaded, text));
        self.fail(key, &failure);
    }

    /// Puts a call into the pool's queue and makes sure that a connection is being dialled.
    pub(super) fn enqueue(&mut self, key: CallKey, pool_key: PoolKey) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let account = call.account();
        let since = call.wait_for_stream(pool_key, now);
        let until = since + call.route.policy().pending_timeout;
        let timer = self.timers.set(until, Timer::Wait(key));
        let old = call.timing.begin_wait(timer);
        self.admission.wait_for_stream(account);
        self.unset(old);
        let (pools, io) = self.pools_io();
        let failed = pools.wait(pool_key, account, key, io);
        self.fail_waiting(failed);
    }

    /// Gives the streams that became free in this turn to waiting calls.
    pub(in crate::exchange) fn feed_pools(&mut self) {
        while let Some(pool) = self.pools.next_runnable() {
            while let Some((call, conn)) = self.pools.next_ready(pool, &self.conns) {
                self.stop_waiting_for_stream(call);
                self.send_attempt(call, conn);
            }
            self.dial_if_needed(pool);
        }
    }

    /// A call has waited in a pool for the longest time allowed.
    pub(in crate::exchange) fn on_pending_timeout(&mut self, key: CallKey, pool: PoolKey) {
        self.count(Counter::BoundPendingTimeout);
        let (reason, wait) = self.what_blocks(key, pool);
        let call = self.calls.get(key);
        let longest = call.map(|call| call.route.policy().pending_timeout);
        let text = format!("waited {:?} {wait}", longest.unwrap_or_default());
        let failure = self.mark_unprocessed(key, Failure::new(reason, text));
        self.fail(key, &failure);
    }

    /// What a call in a pool's queue waits for, and the limit that it has met. The text follows "waited".
    pub(in crate::exchange) fn what_blocks(
        &self,
        key: CallKey,
        pool_key: PoolKey,
    ) -> (Reason, String) {
        let target = self.target_with_address(key, pool_key);
        let call = self.calls.get(key);
        let (Some(call), Some(pool)) = (call, self.pools.get(pool_key)) else {
            return (Reason::Overloaded, format!("for a free stream to {target}"));
        };
        if !pool.has_ready() {
            let error = pool.last_error();
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

    /// The limit that keeps a call from the streams of open connections.
    fn limit_text(&self, key: PoolKey, pool: &Pool, call: &Call) -> String {
        let most = self.options().upstream_connections;
        let capacity = pool.capacity(most);
        let share = |whose: &str, used: usize| {
            format!(
                "{whose} has {used} of the {} that {} may carry, its share; --upstream-connections",
                count(capacity, "stream"),
                count(most, "connection")
            )
        };
        let over = self.pools.over_share(pool, call.account());
        match over.filter(|_| self.pools.room_in(key, &self.conns).is_some()) {
            Some(Over::Caller(used)) => return share("the caller's connection", used),
            Some(Over::Service(used)) => {
                return share(call.route.service_name().unwrap_or("the service"), used);
            }
            None => {}
        }
        let streams = match pool.limit() {
            Some(0) => return "it allows no streams at the moment".to_owned(),
            Some(u32::MAX) | None => "all streams".to_owned(),
            Some(limit) => format!("the limit of {}", count(limit, "stream")),
        };
        let all = |number: usize| match number {
            1 => "the one connection has".to_owned(),
            _ => format!("all {number} connections have"),
        };
        let has_slots = |key: &ConnKey| {
            let conn = self.conns.get(*key);
            conn.is_some_and(Conn::is_blocked_by_output)
        };
        if pool.connections().iter().any(has_slots) {
            return "it has not read what was sent before".to_owned();
        }
        if pool.connections().len() >= most {
            let all = all(most);
            return format!("{all} {streams} in use; --upstream-connections");
        }
        let why = pool.last_error();
        let why = why.unwrap_or("it is being opened");
        let all = all(pool.ready());
        format!("{all} {streams} in use, and no other could be opened yet: {why}")
    }

    /// For messages: the target of a call and its address.
    fn target_with_address(&self, key: CallKey, pool: PoolKey) -> String {
        let target = self.calls.get(key).map(Call::target_name);
        let target = target.unwrap_or_default();
        match self.pools.get(pool).map(|pool| pool.dial().name()) {
            Some(address) => format!("{target} ({address})"),
            None => target,
        }
    }
}
