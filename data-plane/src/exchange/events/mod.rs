//! Input of a connection: its handshake, its first bytes, and the events of its protocol, each passed to its call or
//! pool. Takes bytes; makes no decisions about calls.

mod accept;
mod caller;
mod hello;
mod server;
mod timers;

use crate::connection::{Input, Sniff};
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::observe::Counter;

/// How often one connection is read in a turn before the next one.
const READS_PER_TURN: usize = 4;

impl Exchange {
    /// Reads a connection, whose handshake may have finished just now.
    pub(in crate::exchange) fn read(&mut self, key: ConnKey, buffer: &mut [u8]) {
        if !self.advance_handshake(key) {
            return;
        }
        for round in 0.. {
            if round == READS_PER_TURN {
                self.conns.mark_to_read(key);
                break;
            }
            let Some(conn) = self.conns.get_mut(key) else {
                break;
            };
            match conn.read(buffer, self.now) {
                Input::Bytes { len, more } => {
                    self.feed(key, buffer.get(..len).unwrap_or_default());
                    if !more {
                        break;
                    }
                }
                Input::Blocked => break,
                Input::Closed(why) => {
                    self.lose(key, &why);
                    break;
                }
            }
        }
    }

    /// Continues the handshake of a connection's transport, accepted or dialled. True once it is done, so that the
    /// connection carries the bytes of its protocol.
    pub(in crate::exchange) fn advance_handshake(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key) else {
            return false;
        };
        !conn.is_handshaking() || self.on_handshake_event(key)
    }

    #[cold]
    fn on_handshake_event(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key) else {
            return false;
        };
        match (conn.advance_handshake(), conn.is_accepted()) {
            (Ok(false), _) => return false,
            (Ok(true), true) => self.mark_dirty(key),
            (Ok(true), false) => {
                self.on_connected(key);
                self.mark_dirty(key);
            }
            (Err(error), true) => {
                self.lose(key, &error.to_string());
                return false;
            }
            (Err(error), false) => {
                self.on_connect_error(key, &error);
                return false;
            }
        }
        true
    }

    /// Feeds bytes to the HTTP/2 state machine and dispatches its events.
    fn feed(&mut self, key: ConnKey, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.is_ending() {
            return;
        }
        let (before, after) = conn.identify(bytes);
        match after {
            Sniff::Open(_) => return,
            Sniff::Http1 => return self.refuse_http1(key),
            Sniff::Http2 => self.recv(key, before.held_back()),
        }
        self.recv(key, bytes);
    }

    pub(in crate::exchange) fn recv(&mut self, key: ConnKey, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut fields = std::mem::take(&mut self.fields);
        while let Some(conn) = self.conns.get_mut(key) {
            let accepted = conn.is_accepted();
            match conn.receive(&mut bytes, &mut fields, self.now) {
                Ok(Some(event)) if accepted => self.on_down_event(key, event, &mut fields),
                Ok(Some(event)) => self.on_up_event(key, event, &mut fields),
                Ok(None) => break,
                Err(error) => {
                    self.on_protocol_error(key, error);
                    break;
                }
            }
        }
        self.fields = fields;
        self.count_refused(key);
        self.on_progress(key);
        self.mark_dirty(key);
    }

    fn count_refused(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let more = conn.newly_refused();
        if more > 0 {
            self.metrics.counters.add_many(Counter::BoundStreams, more);
        }
    }
}
