//! Connections that are being opened: the handshake of the transport, the server's settings, and on a link the answer to
//! its Hello (`link_handshake`). Gives a ready connection to its pool, or a failure with its reason. Dialling is in
//! `upstream` and `attempt`.

mod link_handshake;

use std::io;

use crate::connection::{Conn, OpenState};
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::observe::Counter;

impl Exchange {
    /// A dialled connection can carry bytes now: the server's settings are due.
    pub(in crate::exchange) fn on_connected(&mut self, key: ConnKey) {
        let until = self.pools.ready_by(self.now);
        let opened = self.conns.get_mut(key).and_then(Conn::opened_mut);
        if let Some(opened) = opened {
            opened.await_settings(until);
        }
    }

    /// A dialled connection could not be made.
    pub(in crate::exchange) fn on_connect_error(&mut self, key: ConnKey, error: &io::Error) {
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        self.open_failed(key, &error.to_string(), refused);
    }

    /// The server's settings have arrived: a link sends its Hello, other connections are ready.
    pub(in crate::exchange) fn on_settings(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(opened) = conn.opened() else { return };
        let pool = opened.pool();
        match *opened.state() {
            OpenState::Connecting(until) | OpenState::Settings(until) => match opened.is_link() {
                true => self.send_hello(key, until),
                false => self.ready(key),
            },
            OpenState::Hello(..) => {}
            OpenState::Ready => {
                self.pools.note_limit(pool, key, &self.conns);
                self.pools.mark_runnable(pool);
            }
        }
    }

    pub(in crate::exchange) fn ready(&mut self, key: ConnKey) {
        let Some(pool) = self.conns.get(key).and_then(Conn::pool) else {
            return;
        };
        let (pools, io) = self.pools_io();
        pools.on_ready(pool, key, io);
    }

    /// A connection failed before it was ready.
    pub(in crate::exchange) fn open_failed(&mut self, key: ConnKey, why: &str, refused: bool) {
        let Some(conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.admission.discharge_conn(conn.buffered());
        self.count(Counter::ClosedUpstream);
        if let Some(pool) = conn.pool() {
            self.leave_pool(pool, key);
            self.connect_failed(pool, why, refused);
        }
    }
}
