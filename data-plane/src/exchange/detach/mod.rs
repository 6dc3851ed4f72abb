//! Calls leave their streams and queues, and connections leave their pools; what they used is returned. Nothing here
//! decides what becomes of a call.

mod cancels;
mod endpoint_health;

use std::time::Duration;

use heddle_h2::ErrorCode;
use heddle_proto::status_code::is_error;

use crate::caller::Role;
use crate::exchange::call::Phase;
use crate::exchange::owner::Exchange;
use crate::keys::{CallKey, ConnKey, PoolKey};

impl Exchange {
    /// Cancels the current attempt if its server has not ended it.
    pub(in crate::exchange) fn cancel_attempt(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let Some(up) = call.upstream.attempt() else {
            return self.detach_upstream(key);
        };
        if !call.is_over_upstream() {
            self.cancel_upstream(key);
        }
        self.detach_upstream(key);
        self.after_stream(up.conn);
    }

    /// Detaches a call from its attempt, and so from the connection's list and the endpoint's load.
    pub(in crate::exchange) fn detach_upstream(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let account = call.account();
        let (up, queued) = call.upstream.end();
        if let Some(uid) = call.upstream.leave_load()
            && let Some(load) = self.pools.load_mut(uid)
        {
            let took = up.map_or(Duration::ZERO, |up| {
                self.now.saturating_duration_since(up.started)
            });
            let ok = call
                .response
                .status()
                .is_some_and(|status| !is_error(status));
            // Only the caller's proxy reports load; otherwise each call over two proxies would count twice.
            load.end((call.role() == Role::Outbound).then_some((ok, took)));
        }
        if queued {
            self.update_charges(key);
        }
        let Some(up) = up else { return };
        if up.charged {
            self.pools.give_stream(up.pool, account);
        }
        let Some(conn) = self.conns.get_mut(up.conn) else {
            return;
        };
        let moved = conn.remove_call(key, up.slot).flatten();
        if let Some(moved) = moved.and_then(|moved| self.calls.get_mut(moved)) {
            moved.upstream.move_to_slot(up.slot);
        }
    }

    /// Removes a call from every queue and list in which it waits.
    pub(in crate::exchange) fn leave_waiting(&mut self, key: CallKey) {
        self.dequeue(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let timer = call.timing.end_wait();
        match (call.phase(), call.route.service()) {
            (Phase::Table, _) => self.admission.stop_wait_for_table(key),
            (Phase::Endpoints, Some(service)) => {
                self.admission.stop_wait_for_endpoints(&service.name, key);
            }
            _ => {}
        }
        self.unset(timer);
    }

    /// A call stops waiting in its pool.
    fn dequeue(&mut self, key: CallKey) {
        let call = self.calls.get(key);
        let Some((Phase::Pending(pool), account)) = call.map(|call| (call.phase(), call.account()))
        else {
            return;
        };
        self.pools.stop_waiting(pool, account, key);
        self.stop_waiting_for_stream(key);
    }

    /// A call has left the queue of its pool.
    pub(in crate::exchange) fn stop_waiting_for_stream(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (account, timer) = (call.account(), call.timing.end_wait());
        call.back_off();
        self.unset(timer);
        self.admission.stop_wait_for_stream(account);
    }

    /// A connection leaves its pool: it takes no more calls, and its streams no longer count against the pool's limit.
    pub(in crate::exchange) fn leave_pool(&mut self, pool: PoolKey, key: ConnKey) {
        self.pools.remove_connection(pool, key);
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        for call in conn.calls() {
            let Some(call) = self.calls.get_mut(*call) else {
                continue;
            };
            let here = call.upstream.attempt().is_some_and(|up| up.conn == key);
            if here && call.upstream.uncharge() {
                self.pools.give_stream(pool, call.account());
            }
        }
        for account in conn.uncharge_cancels() {
            self.pools.give_stream(pool, account);
        }
    }

    /// A stream has ended: a waiting call may get one, or the connection may have nothing left to do.
    pub(in crate::exchange) fn after_stream(&mut self, key: ConnKey) {
        let now = self.now;
        let conn = self.conns.get_mut(key);
        let Some(end) = conn.and_then(|conn| conn.on_stream_end(now)) else {
            return;
        };
        if end.last {
            self.retire(key);
        }
        self.pools.mark_runnable(end.pool);
    }

    /// Closes a connection that has no calls.
    pub(in crate::exchange) fn retire(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(opened) = conn.opened_mut() else {
            return;
        };
        opened.leave();
        let (pool, ready) = (opened.pool(), opened.is_ready());
        if !ready {
            return;
        }
        conn.send_goaway_and_close(ErrorCode::NO_ERROR, b"");
        self.leave_pool(pool, key);
        self.begin_close(key);
    }
}
