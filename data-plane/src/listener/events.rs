//! What happens on a connection that was accepted, handed to the call it is about. Events of the HTTP/2 machine
//! come in; no decision is made here but what kind of event it is.

use heddle_h2::{ErrorCode, Event, Fields, Kind};

use crate::observe::Counter;
use crate::worker::Worker;
use crate::worker::arena::Key;
use crate::worker::conn::{ConnKey, Ending, HELLO, LINGER, PING, Pulse, pulse};

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
            Event::PingAck(_) => {
                if let Some(down) = self.conns.get_mut(conn).and_then(|conn| conn.down_mut()) {
                    down.ping = None;
                }
            }
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
        let (calls, last_read) = (conn.calls.len(), conn.last_read);
        let Some(down) = conn.down_mut() else { return };
        let silent = down.place.first_by().is_some_and(|by| by <= now);
        let late = down.hello.take_if(|hello| hello.until <= now);
        let life = match down.keepalive.filter(|_| calls > 0) {
            Some(every) => pulse(&mut down.ping, last_read, (every, timeout), now),
            None => {
                down.ping = None;
                Pulse::Fine
            }
        };
        if let Some(hello) = late {
            conn.h2.reset(hello.stream, ErrorCode::CANCEL);
            self.metrics.counters.add(Counter::BoundHandshake);
        }
        if silent && conn.ending == Ending::No {
            conn.h2
                .close(ErrorCode::NO_ERROR, b"no request came in time");
            self.metrics.counters.add(Counter::BoundFirstRequest);
            return self.begin_close(key);
        }
        match life {
            Pulse::Fine => {}
            Pulse::Ask => drop(conn.h2.ping(PING)),
            Pulse::Lost => {
                self.count(Counter::KeepAliveLost);
                self.lose(key, "it did not answer a keep-alive");
            }
        }
    }
}
