//! What happens on a connection that was accepted, handed to the call it is about. Events of the HTTP/2 machine
//! come in; no decision is made here but what kind of event it is.

use heddle_h2::{ErrorCode, Event, Fields, Kind};

use crate::arena::Key;
use crate::connection::{Due, HELLO, LINGER};
use crate::keys::ConnKey;
use crate::observe::Counter;
use crate::worker::Worker;

impl Worker {
    pub(crate) fn on_down_event(&mut self, conn: ConnKey, event: Event<'_>, fields: &mut Fields) {
        match event {
            Event::Headers {
                stream,
                kind: Kind::Request,
                end_stream,
                ..
            } => {
                self.on_request(conn, stream, end_stream, fields);
            }
            Event::Headers {
                token: LINGER | HELLO,
                ..
            } => {}
            Event::Headers { token, .. } => self.on_request_trailers(Key::unpack(token), fields),
            Event::TooLarge {
                stream,
                kind: Kind::Request,
                end_stream,
                ..
            } => {
                self.on_request_too_large(conn, stream, end_stream, fields);
            }
            Event::TooLarge { token, .. } => self.on_request_trailers_too_large(Key::unpack(token)),
            Event::Data {
                stream,
                token: HELLO,
                data,
                end_stream,
            } => {
                self.on_hello_data(conn, stream, data, end_stream);
            }
            Event::Data {
                stream,
                token,
                data,
                end_stream,
            } if token != LINGER => {
                self.on_request_data(conn, stream, Key::unpack(token), data, end_stream);
            }
            Event::Data { stream, data, .. } => self.release(conn, stream, data.len()),
            Event::Reset {
                token: LINGER | HELLO,
                ..
            } => {}
            Event::Reset { token, by, .. } => self.on_caller_reset(Key::unpack(token), by),
            Event::PingAck(payload) => self.on_ping_ack(conn, payload),
            // A client has nothing to say goodbye to; its settings are the machine's matter.
            Event::GoAway { .. } | Event::Settings => {}
        }
    }

    /// What is due on a connection that was accepted: a Hello that does not end, a proxy that may be gone, a first
    /// request that has not come.
    pub(crate) fn on_downstream_timer(&mut self, key: ConnKey) {
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
                conn.goodbye(ErrorCode::NO_ERROR, b"no request came in time");
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
