//! The timer of a connection: closing it, deadlines of the handshake and of the first request, keep-alive and idleness.

use heddle_h2::ErrorCode;

use crate::connection::Due;
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::observe::Counter;

impl Exchange {
    /// A connection's timer is due.
    pub(in crate::exchange) fn on_conn_timer(&mut self, key: ConnKey) {
        let (now, times) = (self.now, self.times());
        if !self.conns.on_timer(key, now, times) {
            return self.rearm(key);
        }
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.is_ending() {
            return self.lose(key, "it was not closed in time");
        }
        conn.end_lingering(now);
        if let Err(error) = conn.check_protocol(now) {
            self.count(Counter::BoundHandshake);
            self.on_protocol_error(key, error);
            return self.rearm(key);
        }
        self.on_upstream_timer(key);
        self.on_downstream_timer(key);
        self.mark_dirty(key);
        self.rearm(key);
    }

    /// Handles a due timer of an upstream connection.
    fn on_upstream_timer(&mut self, key: ConnKey) {
        let now = self.now;
        let (idle, timeout) = (
            self.options().upstream_idle,
            self.options().keepalive_timeout,
        );
        self.send_late_cancels(key);
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.is_ending() {
            return;
        }
        match conn.check_opened(idle, timeout, now) {
            Due::Connect => {
                self.count(Counter::BoundHandshake);
                self.open_failed(key, "it did not answer in time", false);
            }
            Due::Ready => {
                self.count(Counter::BoundHandshake);
                self.open_failed(key, "it accepted the connection and sent nothing", false);
            }
            Due::Idle => {
                self.count(Counter::BoundIdle);
                self.retire(key);
            }
            Due::KeepaliveLost => {
                self.count(Counter::KeepAliveLost);
                self.lose(key, "it did not answer a keep-alive");
            }
            Due::Nothing | Due::FirstRequest => {}
        }
    }

    /// Handles a due timer of an accepted connection: an unfinished Hello, a lost proxy, a first request that has not
    /// arrived.
    fn on_downstream_timer(&mut self, key: ConnKey) {
        let (now, timeout) = (self.now, self.options().keepalive_timeout);
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let due = conn.check_accepted(timeout, now);
        if conn.cancel_late_hello(now) {
            self.metrics.counters.add(Counter::BoundHandshake);
        }
        match due {
            Due::FirstRequest => {
                conn.send_goaway_and_close(ErrorCode::NO_ERROR, b"no request came in time");
                self.count(Counter::BoundFirstRequest);
                self.begin_close(key);
            }
            Due::KeepaliveLost => {
                self.count(Counter::KeepAliveLost);
                self.lose(key, "it did not answer a keep-alive");
            }
            _ => {}
        }
    }
}
