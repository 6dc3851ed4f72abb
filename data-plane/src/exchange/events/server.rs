//! Events of opened connections: events for calls, GOAWAY, keep-alive and idleness. Takes events and timers; makes no
//! decisions about calls.

use heddle_h2::{ErrorCode, Event, Fields, Kind};

use crate::arena::Key;
use crate::connection::{HELLO, LATE};
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;

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
}
