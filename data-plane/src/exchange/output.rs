//! Writes the output of each connection once, at the end of a turn, and tells calls what was written of what they have
//! queued.

use super::caller_stream::CallerStreamId;
use super::owner::Exchange;
use crate::arena::Key;
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
                self.lose(key, "it does not read what is written to it");
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

    /// DATA that was queued in a connection's HTTP/2 state machine has been written: the other side may send more.
    pub(super) fn on_progress(&mut self, key: ConnKey) {
        while let Some(drained) = self.conns.get_mut(key).and_then(Conn::next_drained) {
            let call_key = Key::unpack(drained.token);
            let Some(call) = self.calls.get_mut(call_key) else {
                continue;
            };
            let (now, sent) = (self.now, drained.bytes + drained.list_bytes);
            let stream = CallerStreamId::Http2(drained.stream);
            if call.down.conn == key && call.down.stream == stream {
                self.on_caller_took(call_key, drained.bytes, sent);
            } else if let Some(up) = call
                .up
                .as_mut()
                .filter(|up| up.conn == key && up.stream == drained.stream)
            {
                up.written += drained.bytes;
                call.up_queued.take(sent, now);
                self.account(call_key);
                self.credit_request(call_key);
            }
        }
    }
}
