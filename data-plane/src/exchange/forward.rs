//! Forwards bodies in both directions, with end-to-end flow control: bytes from one side are credited to it only when
//! the other side's HTTP/2 state machine has written them. Takes DATA and progress; gives DATA and credit.

use heddle_h2::StreamId;

use super::caller_stream::CallerStream;
use super::owner::Exchange;
use super::state::{Attempt, Phase, ResponseProgress};
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    /// Forwards a part of the request on the current attempt.
    pub(super) fn send_request_data(&mut self, key: CallKey, up: Attempt, data: &[u8], end: bool) {
        let (bound, now) = (self.replay_bound(key), self.now);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (before, down) = (call.replay.len() + call.up_queued.bytes(), call.down);
        if call.phase == Phase::Attempting && !call.replay.push(data, bound) {
            call.phase = Phase::Committed;
            self.metrics.counters.add(Counter::BoundReplay);
        }
        let sent = self
            .conns
            .get_mut(up.conn)
            .map(|conn| conn.data(up.stream, data, end));
        let thrown = match (sent, call.up.as_mut()) {
            (Some(Ok(sent)), Some(up)) => {
                up.written += sent;
                call.up_queued.add(data.len() - sent, now);
                false
            }
            // The server takes no more of the request: the rest is discarded.
            _ => {
                call.credited = call.received.min(call.credited + data.len());
                true
            }
        };
        let grown = call.replay.len() + call.up_queued.bytes() > before;
        self.account(key);
        self.mark_dirty(up.conn);
        if grown && let Some(over) = self.over_share(key) {
            return self.overload(key, over);
        }
        match thrown {
            true => self.credit_caller(down, data.len()),
            false => self.credit_request(key),
        }
    }

    /// Credits to the caller what has been written upstream for the first time.
    pub(super) fn credit_request(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let written = call.up.map_or(0, |up| up.written);
        let fresh = written.saturating_sub(call.credited);
        if fresh > 0 {
            call.credited += fresh;
            let down = call.down;
            self.credit_caller(down, fresh);
        }
    }

    pub(super) fn on_response_data(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        data: &[u8],
        end: bool,
    ) {
        // The call has ended, and the stream's cancel waits for the rate limit. Without credit the server stops
        // sending.
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let current = call
            .up
            .is_some_and(|up| up.conn == conn && up.stream == stream);
        if !current || call.sent != ResponseProgress::Headers {
            return self.release(conn, stream, data.len());
        }
        let down = call.down;
        let caller = CallerStream::of(&mut self.conns, down);
        let Some(queued) = caller.and_then(|mut caller| caller.data(data, end)) else {
            return self.release(conn, stream, data.len());
        };
        if queued > 0 {
            call.down_queued.add(queued, self.now);
        }
        self.mark_dirty(down.conn);
        self.release(conn, stream, data.len() - queued);
        if queued > 0 {
            self.account(key);
        }
        if let Some(over) = self.over_share_after_writing(key, down.conn) {
            return self.overload(key, over);
        }
        if end {
            // Plain HTTP, or a server that omitted the trailers: forwarded as it is.
            self.response_ended(key);
        }
    }
}
