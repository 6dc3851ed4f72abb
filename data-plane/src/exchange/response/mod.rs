//! Handles a server's answer: 1xx, headers, trailers, resets. Forwarding headers commits the call; before that, a reset
//! or a failure of another proxy may be retried. Takes events; gives frames for the caller.

mod data;
mod reset;

use std::time::Duration;

use heddle_h2::{Fields, Kind, StreamId};
use heddle_proto::Reason;

use crate::balance::passive::End;
use crate::exchange::answer::CallerStream;
use crate::exchange::call::{CANCELLED, Call};
use crate::exchange::headers::{self, Marks};
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

/// How much earlier a server may see a deadline pass, because of the rounding of `grpc-timeout` and of our timers.
const DEADLINE_TOLERANCE: Duration = Duration::from_millis(5);

/// A header list of a response.
#[derive(Clone, Copy, Debug)]
enum List {
    /// The first one, which may be all of it.
    Headers {
        end: bool,
    },
    Trailers,
}

impl List {
    /// Returns how many bytes are queued.
    pub(in crate::exchange) fn write(
        self,
        caller: &mut CallerStream<'_>,
        fields: &Fields,
    ) -> usize {
        match self {
            Self::Headers { end } => caller.headers(fields, end),
            Self::Trailers => caller.trailers(fields),
        }
    }
}

impl Exchange {
    /// Whether this stream is the call's current attempt.
    fn is_current(&self, key: CallKey, conn: ConnKey, stream: StreamId) -> bool {
        let call = self.calls.get(key);
        call.is_some_and(|call| call.upstream.is_on(conn, stream))
    }

    pub(in crate::exchange) fn on_informational(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        fields: &mut Fields,
    ) {
        if !self.is_current(key, conn, stream) {
            return;
        }
        headers::strip(fields);
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let down = call.down();
        if let Some(mut caller) = CallerStream::of(&mut self.conns, down) {
            caller.informational(fields);
        }
        self.mark_dirty(down.conn);
    }

    pub(in crate::exchange) fn on_response(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        fields: &mut Fields,
        end: bool,
    ) {
        if !self.is_current(key, conn, stream) {
            return;
        }
        let marks = self.clean(key, fields);
        if end && self.is_cancelled_at_deadline(key, marks, fields) {
            return self.deadline_at_server(key);
        }
        match marks.reason {
            // A refusal is fast and says nothing about the endpoint's latency.
            _ if marks.unprocessed => {}
            Some(reason) => self.failed_at_peer(key, reason),
            None => self.answered(key),
        }
        if (end || marks.unprocessed) && self.retry_marked(key, conn, marks, fields, end) {
            return;
        }
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let status = end.then(|| headers::grpc_status(fields)).flatten();
        let http_status = fields.status().unwrap_or(0);
        call.response
            .receive_headers(http_status, status, marks.reason);
        call.commit();
        if !end {
            if call.request.is_grpc() {
                headers::remove_length(fields);
            }
            headers::trim(call.request.fields_mut());
            self.update_charges(key);
        }
        if !self.send_list(key, fields, List::Headers { end }) {
            return;
        }
        if let Some(call) = self.calls.get_mut(key) {
            call.response.open();
        }
        if end {
            self.response_ended(key);
        }
    }

    pub(in crate::exchange) fn on_trailers(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        fields: &mut Fields,
    ) {
        if !self.is_current(key, conn, stream) {
            return;
        }
        let marks = self.clean(key, fields);
        if self.is_cancelled_at_deadline(key, marks, fields) {
            return self.deadline_at_server(key);
        }
        if let Some(reason) = marks.reason {
            self.failed_at_peer(key, reason);
        }
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let status = headers::grpc_status(fields);
        call.response.receive_trailers(status, marks.reason);
        if self.send_list(key, fields, List::Trailers) {
            self.response_ended(key);
        }
    }

    /// Forwards a header list to the caller; it is queued while the caller leaves much unread. False if there is no
    /// memory for that, and the call has ended.
    fn send_list(&mut self, key: CallKey, fields: &Fields, list: List) -> bool {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return false;
        };
        let down = call.down();
        let Some(mut caller) = CallerStream::of(&mut self.conns, down) else {
            return false;
        };
        if caller.has_room() && !call.response.has_queued() {
            // Written at once, so nothing is queued.
            list.write(&mut caller, fields);
            self.mark_dirty(down.conn);
            return true;
        }
        if let Some(over) = self.over_share_after_writing(key, down.conn) {
            self.overload(key, over);
            return false;
        }
        let caller = CallerStream::of(&mut self.conns, down);
        let (Some(call), Some(mut caller)) = (self.calls.get_mut(key), caller) else {
            return false;
        };
        call.response.queue(list.write(&mut caller, fields), now);
        self.update_charges(key);
        self.mark_dirty(down.conn);
        true
    }

    pub(in crate::exchange) fn on_response_too_large(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        (kind, end): (Kind, bool),
        fields: &mut Fields,
    ) {
        self.count(Counter::BoundHeaders);
        if !self.is_current(key, conn, stream) {
            return;
        }
        let trailers_only = kind == Kind::Response && end;
        let status = fields.get(b"grpc-status").map(<[u8]>::to_vec);
        let ends = kind == Kind::Trailers || trailers_only;
        let Some(status) = status.filter(|status| ends && status.len() <= STATUS) else {
            let target = self
                .calls
                .get(key)
                .map(Call::target_name)
                .unwrap_or_default();
            let text =
                format!("the response of {target} has a header list over 32 KiB or 256 fields");
            return self.fail(key, &Failure::new(Reason::ResponseInvalid, text));
        };
        // A caller needs the status most: it is forwarded without the fields that did not fit.
        let message = fields
            .get(b"grpc-message")
            .map(|m| m.get(..MESSAGE).unwrap_or(m).to_vec());
        let http_status = fields.get(b":status").unwrap_or(b"200").to_vec();
        let content_type = fields.get(b"content-type").unwrap_or(b"application/grpc");
        let content_type = content_type.get(..MESSAGE).unwrap_or(content_type).to_vec();
        fields.clear();
        if trailers_only {
            fields.push(b":status", &http_status);
            fields.push(b"content-type", &content_type);
        }
        fields.push(b"grpc-status", &status);
        if let Some(message) = message {
            fields.push(b"grpc-message", &message);
        }
        match trailers_only {
            true => self.on_response(conn, stream, key, fields, true),
            false => self.on_trailers(conn, stream, key, fields),
        }
    }

    /// Removes Heddle's own headers; on a link they are read first.
    #[inline]
    fn clean(&self, key: CallKey, fields: &mut Fields) -> Marks {
        if self
            .calls
            .get(key)
            .and_then(|call| call.upstream.attempt())
            .is_some_and(|up| up.link)
        {
            return headers::take_marks(fields);
        }
        headers::strip(fields);
        Marks::default()
    }

    /// Retries a call that failed at another proxy; false if the answer is to be forwarded.
    fn retry_marked(
        &mut self,
        key: CallKey,
        conn: ConnKey,
        marks: Marks,
        fields: &Fields,
        end: bool,
    ) -> bool {
        let Some(reason) = marks.reason else {
            return false;
        };
        let Some(call) = self.calls.get(key) else {
            return false;
        };
        let open = !end || !call.is_all_sent();
        let text = fields.get(b"grpc-message").unwrap_or_default();
        let mut failure = Failure::new(reason, String::from_utf8_lossy(text));
        if let Some(status) = headers::grpc_status(fields) {
            failure = failure.with_status(status);
        }
        if marks.unprocessed {
            // The call may have waited there for so long that there are other instances now.
            self.refresh_service(key);
            return self.can_retry_unseen(key, reason) && self.may_retry_refused(key, reason) && {
                self.cancel_rest(key, open);
                self.retry_safe(key, conn, failure);
                true
            };
        }
        // Only failures on the way can be avoided by another instance.
        let broken = matches!(
            reason,
            Reason::ConnectionLost
                | Reason::UpstreamReset
                | Reason::ConnectFailed
                | Reason::Draining
        );
        let cancelled = failure.status() == CANCELLED;
        broken && !cancelled && self.can_retry_idempotent(key) && {
            self.cancel_rest(key, open);
            self.attempt_failed(key, conn, &failure);
            true
        }
    }

    /// The server answered before the whole request was sent: the rest is not needed.
    fn cancel_rest(&mut self, key: CallKey, open: bool) {
        if open {
            self.cancel_upstream(key);
        }
    }

    /// Servers that enforce the deadline end the call when it has passed, often slightly before our timer.
    fn is_at_deadline(&self, key: CallKey) -> bool {
        let deadline = self.calls.get(key).and_then(|call| call.timing.deadline());
        deadline.is_some_and(|at| at <= self.now + DEADLINE_TOLERANCE)
    }

    /// Whether the server answered CANCELLED because the deadline has passed, as tonic does.
    #[inline]
    fn is_cancelled_at_deadline(&self, key: CallKey, marks: Marks, fields: &Fields) -> bool {
        // The cheapest check first: nearly every answer arrives long before the deadline.
        self.is_at_deadline(key)
            && marks.reason.is_none()
            && headers::grpc_status(fields) == Some(CANCELLED)
    }

    /// The server ended the call because its deadline passed: the caller gets DEADLINE_EXCEEDED, whatever the server
    /// sent.
    fn deadline_at_server(&mut self, key: CallKey) {
        self.unanswered(key, End::Deadline);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let target = call.target_name();
        let text = format!("the caller's deadline passed at {target}, which ended the call");
        // There is nothing to cancel if the whole request was sent.
        call.begin_finish();
        self.fail(key, &Failure::new(Reason::DeadlineExceeded, text));
    }

    /// The whole response has arrived and is in the HTTP/2 state machine of the caller's connection.
    fn response_ended(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.response.complete(call.request.is_grpc());
        call.begin_finish();
        // The server has finished, however slowly the caller reads: its stream is free for the next call.
        self.cancel_attempt(key);
        self.finish_if_done(key);
    }
}

/// Longest message that is forwarded from trailers that were too large.
const MESSAGE: usize = 4096;
/// Longest status that is forwarded: a number.
const STATUS: usize = 8;
