//! Events of accepted connections: passes each event of the protocol to the call that it belongs to.

use heddle_h2::{ErrorCode, Event, Fields, Kind, StreamId};

use super::owner::Exchange;
use crate::arena::Key;
use crate::connection::{Due, HELLO, LINGER};
use crate::keys::ConnKey;
use crate::link::server::Answering;
use crate::link::{self, Identity};
use crate::observe::Counter;

impl Exchange {
    pub(super) fn on_down_event(&mut self, conn: ConnKey, event: Event<'_>, fields: &mut Fields) {
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
            // A client's GOAWAY needs no reaction, and its settings are handled by the HTTP/2 state machine.
            Event::GoAway { .. } | Event::Settings => {}
        }
    }

    /// Handles a due timer of an accepted connection: an unfinished Hello, a lost proxy, a first request that has not
    /// arrived.
    pub(super) fn on_downstream_timer(&mut self, key: ConnKey) {
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

    /// Whether a request on inbound is a link's Hello. If so, it is handled here.
    pub(super) fn begin_hello(
        &mut self,
        key: ConnKey,
        stream: StreamId,
        end: bool,
        fields: &Fields,
    ) -> bool {
        if !link::server::is_hello(fields) {
            return false;
        }
        let until = self.now + self.options().handshake_timeout;
        if let Some(conn) = self.conns.get_mut(key) {
            conn.begin_hello(stream, until);
        }
        self.on_hello_data(key, stream, &[], end);
        true
    }

    fn on_hello_data(&mut self, key: ConnKey, stream: StreamId, data: &[u8], end: bool) {
        self.release(key, stream, data.len());
        if let Some(conn) = self.conns.get_mut(key) {
            let answering = Answering {
                own: Identity {
                    node: &self.options.node,
                    incarnation: &self.options.incarnation,
                },
                reply: &mut self.reply,
                now: self.now,
            };
            link::server::on_data(conn, stream, data, end, answering);
        }
        self.mark_dirty(key);
    }
}
