//! Events of opened connections: events for calls, GOAWAY, keep-alive and idleness. Takes events and timers; makes no
//! decisions about calls.

use heddle_h2::{ErrorCode, Event, Fields, Kind};
use heddle_proto::Reason;

use super::owner::Exchange;
use crate::arena::Key;
use crate::balance::passive::End;
use crate::connection::{Conn, Due, HELLO, LATE};
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    pub(super) fn on_up_event(&mut self, conn: ConnKey, event: Event<'_>, fields: &mut Fields) {
        match event {
            Event::Headers {
                token: HELLO,
                end_stream,
                ..
            } => {
                if end_stream {
                    self.on_hello_end(conn, fields);
                }
            }
            Event::Data {
                stream,
                token: HELLO,
                data,
                end_stream,
            } => {
                self.release(conn, stream, data.len());
                self.on_hello_answer(conn, data);
                if end_stream {
                    self.on_hello_end(conn, &Fields::new());
                }
            }
            Event::Reset {
                token: HELLO, code, ..
            } => {
                self.open_failed(conn, &format!("it reset the Hello with {code}"), false);
            }
            Event::TooLarge { token: HELLO, .. } => {
                self.open_failed(conn, "its answer to Hello is too large", false);
            }
            Event::Headers {
                token: LATE,
                stream,
                ..
            }
            | Event::TooLarge {
                token: LATE,
                stream,
                ..
            }
            | Event::Data {
                token: LATE,
                stream,
                ..
            }
            | Event::Reset {
                token: LATE,
                stream,
                ..
            } => self.on_late_event(conn, stream),
            Event::Headers {
                stream,
                token,
                kind,
                end_stream,
            } => {
                let call = Key::unpack(token);
                match kind {
                    Kind::Informational => self.on_informational(conn, stream, call, fields),
                    Kind::Trailers => self.on_trailers(conn, stream, call, fields),
                    Kind::Response | Kind::Request => {
                        self.on_response(conn, stream, call, fields, end_stream);
                    }
                }
            }
            Event::TooLarge {
                stream,
                token,
                kind,
                end_stream,
            } => {
                let call = Key::unpack(token);
                self.on_response_too_large(conn, stream, call, (kind, end_stream), fields);
            }
            Event::Data {
                stream,
                token,
                data,
                end_stream,
            } => {
                self.on_response_data(conn, stream, Key::unpack(token), data, end_stream);
            }
            Event::Reset {
                stream,
                token,
                code,
                unprocessed,
                by,
            } => {
                self.on_upstream_reset(conn, stream, Key::unpack(token), code, unprocessed, by);
                self.after_stream(conn);
            }
            Event::GoAway { code, .. } => self.on_goaway(conn, code),
            Event::Settings => self.on_settings(conn),
            Event::PingAck(payload) => self.on_ping_ack(conn, payload),
        }
    }

    /// A stream has ended: a waiting call may get its place, or the connection may have nothing left to do.
    pub(super) fn after_stream(&mut self, key: ConnKey) {
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

    fn on_goaway(&mut self, key: ConnKey, code: ErrorCode) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let empty = conn.calls().is_empty();
        let Some(opened) = conn.opened_mut() else {
            return;
        };
        opened.on_goaway(code);
        let (pool, ready) = (opened.pool(), opened.is_ready());
        if !ready {
            return self.open_failed(
                key,
                &format!("it sent GOAWAY with {code} before it accepted a call"),
                false,
            );
        }
        self.leave_pool(pool, key);
        if empty {
            self.retire(key);
        }
        self.pools.mark_runnable(pool);
    }

    /// Closes a connection that has no calls.
    pub(super) fn retire(&mut self, key: ConnKey) {
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
        conn.goodbye(ErrorCode::NO_ERROR, b"");
        self.leave_pool(pool, key);
        self.begin_close(key);
    }

    /// A connection was lost: its pool dials again if needed, and the agent is notified.
    pub(super) fn on_upstream_lost(&mut self, key: ConnKey, conn: &mut Conn, why: &str) {
        let charged = conn.uncharge_cancels();
        let broken = !conn.is_ending();
        let Some(opened) = conn.opened() else { return };
        let pool_key = opened.pool();
        self.leave_pool(pool_key, key);
        for account in charged {
            self.pools.give_stream(pool_key, account);
        }
        if !opened.is_ready() {
            // It was never ready, so the waiting calls must be notified. The connection has been removed already.
            return self.connect_failed(pool_key, why, false);
        }
        let report = broken && !opened.is_leaving();
        if report {
            self.pools.report_lost(pool_key);
        }
        self.pools.mark_runnable(pool_key);
    }

    /// Handles a due timer of an upstream connection.
    pub(super) fn on_upstream_timer(&mut self, key: ConnKey) {
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

    /// The server violated HTTP/2 while a call was on the connection.
    pub(super) fn on_server_broke(&mut self, call: CallKey, conn: ConnKey, error: &str) {
        let Some(found) = self.calls.get(call) else {
            return;
        };
        let text = format!("{} violated HTTP/2: {error}", found.peer_name());
        self.unanswered(call, End::Lost);
        self.attempt_failed(call, conn, &Failure::new(Reason::ProtocolError, text));
    }
}
