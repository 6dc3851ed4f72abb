//! Writes the output of each connection once, at the end of a turn, and passes on to calls what was written of what they have
//! queued. Keeps the charges of connections up to date.

use crate::arena::Key;
use crate::connection::{Conn, OutputState};
use crate::exchange::call::{CallerStreamId, Downstream};
use crate::exchange::owner::Exchange;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;
use crate::policy::buffers::OverShare;

/// Bytes of an unfinished frame or header block that a connection may always have buffered.
const PARTIAL_BYTES: usize = 32 * 1024;

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
        self.conns.limit_spare(key);
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
            if call.down() == (Downstream { conn: key, stream }) {
                self.on_caller_took(call_key, drained.bytes, sent);
            } else if call.upstream.is_on(key, drained.stream) {
                call.upstream.add_written(drained.bytes);
                call.upstream.take_queued(sent, now);
                self.update_charges(call_key);
                self.credit_request(call_key);
            }
        }
    }

    /// Charges a connection for the bytes in its HTTP/2 state machine.
    pub(super) fn count_machine(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let (partial, now) = (conn.partial_bytes(), conn.waiting_bytes());
        let changed = self.admission.charge_conn(conn.buffered_mut(), now);
        if changed
            && partial > PARTIAL_BYTES
            && conn.is_accepted()
            && self.over_share_of_conn(key).is_some()
        {
            self.count(Counter::BoundCallerShare);
            self.lose(
                key,
                "its unfinished header block exceeds its share of the proxy's buffers",
            );
        }
    }

    /// Like `over_share`, before more is queued for the caller. Writes what is queued first: a caller that reads is not
    /// at fault for bytes that were never written to it.
    #[inline]
    pub(super) fn over_share_after_writing(
        &mut self,
        key: CallKey,
        caller: ConnKey,
    ) -> Option<OverShare> {
        match self.admission.is_far_from_full() {
            true => None,
            false => self.over_share_when_written(key, caller),
        }
    }

    #[cold]
    fn over_share_when_written(&mut self, key: CallKey, caller: ConnKey) -> Option<OverShare> {
        self.count_machine(caller);
        self.over_share(key)?;
        if self
            .conns
            .get(caller)
            .is_some_and(|conn| !conn.is_blocked())
        {
            self.flush(caller);
        }
        self.over_share(key)
    }

    /// Queued bytes of the response have been written: `data` of its body, `all` with its header lists.
    pub(super) fn on_caller_took(&mut self, key: CallKey, data: usize, all: usize) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.response.take_queued(all, now);
        if let Some(up) = call.upstream.attempt() {
            self.release(up.conn, up.stream, data);
        }
        self.update_charges(key);
        self.finish_if_done(key);
    }
}
