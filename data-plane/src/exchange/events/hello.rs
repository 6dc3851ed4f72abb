//! The accepting side of a link's handshake: a request on inbound that is a Hello is received and answered here. The
//! messages are in `link`.

use heddle_h2::{Fields, StreamId};

use crate::exchange::owner::Exchange;
use crate::keys::ConnKey;
use crate::link::server::Answering;
use crate::link::{self, Identity};

impl Exchange {
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

    pub(super) fn on_hello_data(&mut self, key: ConnKey, stream: StreamId, data: &[u8], end: bool) {
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
