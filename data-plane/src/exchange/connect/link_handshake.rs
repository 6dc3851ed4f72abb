//! The opening side of a link's handshake: sends the Hello once the other proxy's settings have arrived, and waits for the
//! complete answer. The messages are in `link`; dialling is in `upstream` and `attempt`.

use heddle_h2::Fields;

use crate::connection::OpenState;
use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::link::{Identity, client};
use crate::upstream::dial::Dial;
use crate::upstream::pool::Pool;

impl Exchange {
    pub(super) fn send_hello(&mut self, key: ConnKey, until: std::time::Instant) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let pool = conn.pool().and_then(|pool| self.pools.get(pool));
        let Some(Dial::Node(_, node)) = pool.map(Pool::dial) else {
            return;
        };
        let own = Identity {
            node: &self.options.node,
            incarnation: &self.options.incarnation,
        };
        match client::send_hello(conn, own, node, until) {
            Ok(()) => self.mark_dirty(key),
            Err(why) => self.open_failed(key, &why, false),
        }
    }

    /// A part of the answer to our Hello.
    pub(in crate::exchange) fn on_hello_answer(&mut self, key: ConnKey, data: &[u8]) {
        let opened = self.conns.get_mut(key).and_then(|conn| conn.opened_mut());
        if let Some(opened) = opened {
            opened.push_hello(data, client::ANSWER_BYTES);
        }
    }

    /// The answer to our Hello is complete, with the trailers in `fields`.
    pub(in crate::exchange) fn on_hello_end(&mut self, key: ConnKey, fields: &Fields) {
        let Some(opened) = self.conns.get(key).and_then(|conn| conn.opened()) else {
            return;
        };
        let OpenState::Hello(_, bytes) = opened.state() else {
            return;
        };
        let dial = self.pools.get(opened.pool()).map(Pool::dial);
        let Some(Dial::Node(_, expected)) = dial else {
            return;
        };
        match client::check_answer(bytes, fields, expected) {
            Ok(()) => self.ready(key),
            Err(why) => self.open_failed(key, &why, false),
        }
    }
}
