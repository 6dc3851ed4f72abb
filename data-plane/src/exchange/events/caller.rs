//! Events of connections of HTTP/2 callers become input of their calls. The token of a stream is the key of its call.

use heddle_h2::{Event, Fields, Initiator, Kind};

use crate::arena::Key;
use crate::caller::Role;
use crate::connection::{Conn, HELLO, LINGER};
use crate::exchange::call::CallerStreamId;
use crate::exchange::finish::caller_end::CallerEnd;
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;

impl Exchange {
    /// An event of an accepted connection.
    pub(super) fn on_down_event(&mut self, conn: ConnKey, event: Event<'_>, fields: &mut Fields) {
        match event {
            Event::Headers {
                stream,
                kind: Kind::Request,
                end_stream,
                ..
            } => {
                let role = self.conns.get(conn).and_then(Conn::role);
                if role == Some(Role::Inbound) && self.begin_hello(conn, stream, end_stream, fields)
                {
                    return;
                }
                self.on_request(conn, CallerStreamId::Http2(stream), end_stream, fields);
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
                let stream = CallerStreamId::Http2(stream);
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
            } => {
                let of_call = token != LINGER;
                if !(of_call && self.on_request_data(Key::unpack(token), data, end_stream)) {
                    self.release(conn, stream, data.len());
                }
            }
            Event::Reset {
                token: LINGER | HELLO,
                ..
            } => {}
            Event::Reset { token, by, .. } => {
                let how = match by {
                    Initiator::Remote => CallerEnd::Cancelled,
                    // Our state machine reset the stream, because of an error of the caller.
                    Initiator::Local => CallerEnd::BrokeProtocol,
                };
                self.on_caller_end(Key::unpack(token), how);
            }
            Event::PingAck(payload) => self.on_ping_ack(conn, payload),
            // A client's GOAWAY needs no reaction, and its settings are handled by the HTTP/2 state machine.
            Event::GoAway { .. } | Event::Settings => {}
        }
    }
}
