//! What happens on a connection that was accepted, handed to the call it is about. Events of the HTTP/2 machine
//! come in; no decision is made here but what kind of event it is.

use heddle_h2::{Event, Fields, Kind};

use crate::worker::Worker;
use crate::worker::arena::Key;
use crate::worker::conn::{ConnKey, HELLO, LINGER};

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
            // A client has nothing to say goodbye to; its settings and acknowledgements are the machine's matter.
            Event::GoAway { .. } | Event::PingAck(_) | Event::Settings => {}
        }
    }
}
