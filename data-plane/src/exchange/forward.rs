//! Bytes of bodies both ways, with the windows tied end to end: what one side sent is given back to its window only
//! when the other side's machine has written it. DATA and progress come in, DATA and credit go out.

use heddle_h2::{Fields, StreamId};

use super::begin::too_large_headers;
use super::headers;
use super::state::{Attempt, Phase, Sent};
use crate::observe::Counter;
use crate::worker::Worker;
use crate::worker::arena::Key;
use crate::worker::conn::{CallKey, ConnKey};

impl Worker {
    pub(crate) fn on_request_data(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        data: &[u8],
        end: bool,
    ) {
        let Some(call) = self.calls.get_mut(key) else {
            return self.release(conn, stream, data.len());
        };
        let before = call.held();
        call.received += data.len();
        call.request_ended |= end;
        match (call.up, call.phase) {
            (Some(up), Phase::Attempting | Phase::Committed) => {
                self.send_request_data(key, up, data, end);
            }
            (_, Phase::Table | Phase::Endpoints | Phase::Pending(_) | Phase::Backoff) => {
                // Nobody has it yet: kept whatever its size, which the caller's window bounds.
                call.replay.hold(data);
                self.held = (self.held + call.held()).saturating_sub(before);
                if !data.is_empty() && self.is_over_full() {
                    return self.refuse_more(key);
                }
            }
            _ => {
                call.credited = call.received.min(call.credited + data.len());
                self.release(conn, stream, data.len());
            }
        }
        if end {
            self.finish_if_done(key);
        }
    }

    /// Sends on what has come of the request, to where it is being sent.
    fn send_request_data(&mut self, key: CallKey, up: Attempt, data: &[u8], end: bool) {
        let bound = self.replay_bound();
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (before, down) = (call.held(), call.down);
        if call.phase == Phase::Attempting && !call.replay.push(data, bound) {
            call.phase = Phase::Committed;
            self.metrics.counters.add(Counter::BoundReplay);
        }
        let sent = self
            .conns
            .get_mut(up.conn)
            .map(|conn| conn.h2.data(up.stream, data, end));
        let thrown = match (sent, call.up.as_mut()) {
            (Some(Ok(sent)), Some(up)) => {
                up.written += sent;
                call.up_queued += data.len() - sent;
                false
            }
            // The server takes no more of it: what still comes is thrown away.
            _ => {
                call.credited = call.received.min(call.credited + data.len());
                true
            }
        };
        let grown = call.held() > before;
        self.held = (self.held + call.held()).saturating_sub(before);
        self.mark_dirty(up.conn);
        if grown && self.is_over_full() {
            return self.refuse_more(key);
        }
        match thrown {
            true => self.release(down.conn, down.stream, data.len()),
            false => self.credit_request(key),
        }
    }

    /// Whether the worker holds more than it may: whoever adds to it now has to go.
    pub(crate) fn is_over_full(&self) -> bool {
        self.held > self.options().held_bytes
    }

    /// Ends a call that would have the worker hold more than it may.
    fn refuse_more(&mut self, key: CallKey) {
        self.count(Counter::BoundMemory);
        let failure = self.too_much_held();
        self.fail(key, &failure);
    }

    /// Gives back to the caller's window what has been written upstream for the first time.
    pub(crate) fn credit_request(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let written = call.up.map_or(0, |up| up.written);
        let fresh = written.saturating_sub(call.credited);
        if fresh > 0 {
            call.credited += fresh;
            let down = call.down;
            self.release(down.conn, down.stream, fresh);
        }
    }

    pub(crate) fn on_request_trailers(&mut self, key: CallKey, fields: &mut Fields) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        headers::strip(fields);
        call.request_ended = true;
        if let Some(up) = call.up {
            if let Some(conn) = self.conns.get_mut(up.conn) {
                let queued = conn.h2.headers(up.stream, fields, true).unwrap_or(0);
                call.up_queued += queued;
                self.held += queued;
            }
            self.mark_dirty(up.conn);
        }
        if let Some(call) = self.calls.get_mut(key).filter(|call| call.can_replay()) {
            call.request_trailers = Some(Box::new(fields.clone()));
        }
        self.finish_if_done(key);
    }

    pub(crate) fn on_request_trailers_too_large(&mut self, key: CallKey) {
        self.count(Counter::BoundHeaders);
        self.fail(key, &too_large_headers("list of the request's trailers"));
    }

    pub(crate) fn on_response_data(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        data: &[u8],
        end: bool,
    ) {
        // A stream whose cancel waits for the server's rate: with no credit the server stops by itself.
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let current = call
            .up
            .is_some_and(|up| up.conn == conn && up.stream == stream);
        if !current || call.sent != Sent::Headers {
            return self.release(conn, stream, data.len());
        }
        let down = call.down;
        let sent = self
            .conns
            .get_mut(down.conn)
            .map(|conn| conn.h2.data(down.stream, data, end));
        let Some(Ok(sent)) = sent else {
            return self.release(conn, stream, data.len());
        };
        call.down_queued += data.len() - sent;
        call.progress = self.now;
        self.held += data.len() - sent;
        self.mark_dirty(down.conn);
        self.release(conn, stream, sent);
        if sent < data.len() && self.is_over_full() {
            self.count(Counter::BoundMemory);
            // A failure would have to wait behind what is queued.
            return self.cut(key, "the proxy's buffers are full");
        }
        if end {
            // Plain HTTP, or a server that forgot its trailers: passed on as it is.
            self.response_ended(key);
        }
    }

    /// DATA that waited in a connection's machine has been written: the other side gets its credit.
    pub(crate) fn on_progress(&mut self, key: ConnKey) {
        while let Some(drained) = self
            .conns
            .get_mut(key)
            .and_then(|conn| conn.h2.poll_drained())
        {
            let call_key = Key::unpack(drained.token);
            let Some(call) = self.calls.get_mut(call_key) else {
                continue;
            };
            call.progress = self.now;
            if call.down.conn == key && call.down.stream == drained.stream {
                let sent = drained.bytes + drained.list_bytes;
                call.down_queued = call.down_queued.saturating_sub(sent);
                self.held = self.held.saturating_sub(sent);
                if let Some(up) = call.up {
                    self.release(up.conn, up.stream, drained.bytes);
                }
                self.finish_if_done(call_key);
            } else if let Some(up) = call
                .up
                .as_mut()
                .filter(|up| up.conn == key && up.stream == drained.stream)
            {
                let sent = drained.bytes + drained.list_bytes;
                up.written += drained.bytes;
                call.up_queued = call.up_queued.saturating_sub(sent);
                self.held = self.held.saturating_sub(sent);
                self.credit_request(call_key);
            }
        }
    }

    /// Cuts calls whose receiver has taken nothing for long, while the worker holds much.
    pub(crate) fn cut_stalled(&mut self) {
        if self.held <= self.options().held_bytes / 2 {
            return;
        }
        let limit = self.options().stall_timeout;
        let stalled = |call: &super::state::Call| {
            call.down_queued + call.up_queued > 0 && self.now >= call.progress + limit
        };
        let cut: Vec<CallKey> = self
            .calls
            .iter()
            .filter(|(_, call)| stalled(call))
            .map(|(key, _)| key)
            .collect();
        for key in cut {
            self.count(Counter::BoundStall);
            self.cut(
                key,
                "the receiver has taken nothing for long, and the proxy's buffers are nearly full",
            );
        }
    }
}
