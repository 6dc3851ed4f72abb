//! The drain: every caller gets a GOAWAY, and calls that are left in the end fail with DRAINING. When to drain, and for
//! how long, is decided by the event loop.

use heddle_h2::ErrorCode;
use heddle_proto::Reason;

use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::ConnKey;

impl Exchange {
    /// Sends a drain's GOAWAY on an accepted connection.
    pub(crate) fn send_goaway(&mut self, key: ConnKey) {
        let now = self.now;
        let conn = self.conns.get_mut(key);
        if conn.is_some_and(|conn| conn.begin_drain(now)) {
            self.mark_dirty(key);
        }
    }

    /// Sends a drain's GOAWAY to every caller.
    pub(crate) fn send_goaways(&mut self) {
        for key in self.conns.keys() {
            self.send_goaway(key);
        }
    }

    /// Whether no call is left and no new one can arrive.
    pub(crate) fn is_drained(&self) -> bool {
        let mut conns = self.conns.iter();
        self.calls.len() == 0 && conns.all(|(_, conn)| conn.is_drained(self.now))
    }

    /// Ends the calls that are left with DRAINING, and closes the connections that they came on.
    pub(crate) fn end_calls(&mut self, why: &str) {
        let text = format!("node {} is stopping, and {why}", self.options.node);
        for call in self.calls.keys() {
            self.fail(call, &Failure::new(Reason::Draining, text.clone()));
            // A caller that has not read its last bytes by now does not get them.
            self.abandon(call);
        }
        for key in self.conns.keys() {
            let conn = self.conns.get_mut(key);
            if let Some(conn) = conn.filter(|conn| conn.is_accepted()) {
                conn.send_goaway_and_close(ErrorCode::NO_ERROR, b"drained");
                self.begin_close(key);
            }
        }
    }
}
