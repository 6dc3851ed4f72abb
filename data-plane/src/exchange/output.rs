//! Writes the output of each connection once, at the end of a turn. Does nothing else.

use super::owner::Exchange;
use crate::connection::{Conn, OutputState};
use crate::keys::ConnKey;
use crate::observe::Counter;

impl Exchange {
    /// Writes a connection's output, and lets waiting calls use the room that this makes.
    pub(super) fn flush(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let full = conn.full_for();
        match conn.flush(self.now) {
            OutputState::Done | OutputState::Blocked => {}
            OutputState::Overfull => {
                self.count(Counter::BoundOutput);
                self.lose(key, "it leaves unread what is written for it");
            }
            OutputState::Failed => self.conns.mark_to_read(key),
        }
        self.on_progress(key);
        self.rearm(key);
        self.count_machine(key);
        // Calls may have waited for the server to read.
        let relieved = |conn: &Conn| conn.has_output_room();
        if let Some(pool) = full
            && self.conns.get(key).is_some_and(relieved)
        {
            self.pools.mark_runnable(pool);
        }
    }
}
