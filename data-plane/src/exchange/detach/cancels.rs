//! Forwards cancels of calls to their server. The connection (`connection/cancels`) limits their rate, so that other
//! calls are not harmed; this module returns the cancelled streams to the pool.

use heddle_h2::StreamId;

use crate::connection::{Attempted, Cancelled};
use crate::exchange::owner::Exchange;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    /// Cancels a call's attempt at its server, at once or when the rate limit allows it.
    pub(in crate::exchange) fn cancel_upstream(&mut self, call: CallKey) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(call) else {
            return;
        };
        let (account, Some(up)) = (call.account(), call.upstream.attempt()) else {
            return;
        };
        let attempted = Attempted {
            stream: up.stream,
            started: up.started,
            account,
            charged: up.charged,
        };
        let key = up.conn;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        match conn.cancel(attempted, now) {
            Cancelled::Gone => return,
            Cancelled::Sent => {}
            Cancelled::Waits { at_bound } => {
                call.upstream.uncharge();
                if at_bound {
                    self.count(Counter::BoundCancels);
                }
                self.send_late_cancels(key);
            }
        }
        self.mark_dirty(key);
    }

    /// Sends the cancels that are allowed now, and sets the connection's timer for the others.
    pub(in crate::exchange) fn send_late_cancels(&mut self, key: ConnKey) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(pool) = conn.pool() else { return };
        let sent = conn.send_cancels(now);
        for account in sent.charged {
            self.pools.give_stream(pool, account);
        }
        if sent.any {
            self.after_stream(key);
        }
        self.mark_dirty(key);
        self.rearm(key);
    }

    /// A PING was acknowledged.
    pub(in crate::exchange) fn on_ping_ack(&mut self, key: ConnKey, payload: [u8; 8]) {
        let now = self.now;
        let conn = self.conns.get_mut(key);
        if conn.is_some_and(|conn| conn.on_ping_ack(payload, now)) {
            self.send_late_cancels(key);
        }
    }

    /// Something arrived on a stream whose cancel waits: the stream may have ended by itself.
    pub(in crate::exchange) fn on_late_event(&mut self, key: ConnKey, stream: StreamId) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let (Some(pool), Some(charged)) = (conn.pool(), conn.end_cancelled(stream)) else {
            return;
        };
        if let Some(account) = charged {
            self.pools.give_stream(pool, account);
        }
        self.mark_dirty(key);
        self.after_stream(key);
    }
}
