//! Answers a call's caller: headers, data, trailers, failures of the proxy, and flow-control credit. The exchange
//! writes to callers only through [`CallerStream`]. Callers use HTTP/2 today; another protocol (gRPC-Web, REST,
//! WebSocket) would be another implementation of the same few methods. Decisions about calls do not belong here.

use std::time::Instant;

use heddle_h2::{ErrorCode, Fields, StreamId};

use super::owner::Exchange;
use super::state::{Call, Downstream, ResponseProgress};
use crate::connection::{Conn, Connections};
use crate::failure::{self, Failure, FailureContext};

/// gRPC's CANCELLED.
const CANCELLED: u8 = 1;

/// The stream on which a call arrived. What is written is queued in its connection until the next flush.
pub(super) struct CallerStream<'w> {
    conn: &'w mut Conn,
    stream: StreamId,
}

/// The form in which a caller gets a failure.
pub(super) struct FailureForm<'c> {
    /// The request's content type, if it is gRPC.
    grpc: Option<&'c [u8]>,
    /// The request's method is HEAD.
    head: bool,
    sent: ResponseProgress,
}

impl<'c> FailureForm<'c> {
    pub(super) fn of(call: &'c Call) -> Self {
        let content_type = call.request.get(b"content-type");
        Self {
            grpc: call
                .grpc
                .then(|| content_type.unwrap_or(b"application/grpc")),
            head: call.request.method() == Some(b"HEAD"),
            sent: call.sent,
        }
    }
}

impl<'w> CallerStream<'w> {
    /// The caller's stream, if its connection still exists.
    pub(super) fn of(conns: &'w mut Connections, down: Downstream) -> Option<Self> {
        let conn = conns.get_mut(down.conn)?;
        let stream = down.stream;
        Some(Self { conn, stream })
    }

    /// Forwards 1xx headers.
    pub(super) fn informational(&mut self, fields: &Fields) {
        // A stream that has been reset meanwhile needs none.
        let _ = self.conn.headers(self.stream, fields, false);
    }

    /// Whether headers are written at once, which is not the case while the caller leaves much unread.
    pub(super) fn has_room(&self) -> bool {
        self.conn.has_output_room()
    }

    /// Writes the response's headers, with END_STREAM if `end`. Returns how many of their bytes are queued; none if the
    /// caller has reset the stream meanwhile.
    pub(super) fn headers(&mut self, fields: &Fields, end: bool) -> usize {
        let queued = self.conn.headers(self.stream, fields, end);
        queued.unwrap_or(0)
    }

    /// Writes a part of the response's body and returns how much of it is queued. `None`: the stream takes no more.
    pub(super) fn data(&mut self, data: &[u8], end: bool) -> Option<usize> {
        let sent = self.conn.data(self.stream, data, end).ok()?;
        Some(data.len() - sent)
    }

    /// Writes the response's trailers and returns how many of their bytes are queued.
    pub(super) fn trailers(&mut self, fields: &Fields) -> usize {
        self.headers(fields, true)
    }

    /// Writes a failure of the proxy and returns how many bytes of it are queued; `None` if the stream was reset, which
    /// also discards what was queued. `lists` is a buffer for the header lists.
    pub(super) fn fail(
        &mut self,
        failure: &Failure,
        context: FailureContext<'_>,
        form: &FailureForm<'_>,
        lists: &mut Fields,
    ) -> Option<usize> {
        match (form.grpc, form.sent) {
            (Some(content_type), ResponseProgress::Nothing) => {
                failure::trailers_only(failure, context, content_type, lists);
                failure::fit(self.conn.peer_header_list_bytes(), lists);
                Some(self.headers(lists, true))
            }
            (Some(_), _) => {
                failure::trailers(failure, context, lists);
                failure::fit(self.conn.peer_header_list_bytes(), lists);
                Some(self.trailers(lists))
            }
            (None, ResponseProgress::Nothing) => {
                failure::http_headers(failure, context, lists);
                let head = self.headers(lists, form.head);
                if form.head {
                    return Some(head);
                }
                let body = failure::http_body(failure, context);
                Some(head + self.data(body.as_bytes(), true).unwrap_or(0))
            }
            // Plain HTTP has no other way to report that the rest is missing. The reset discards what was queued, so
            // there is no progress to report.
            (None, _) => {
                let code = match failure.status() {
                    CANCELLED => ErrorCode::CANCEL,
                    _ => ErrorCode::INTERNAL_ERROR,
                };
                self.reset(code);
                None
            }
        }
    }

    /// What the caller sent has been forwarded: it may send this many bytes more.
    pub(super) fn credit(&mut self, bytes: usize) {
        self.conn.release(self.stream, bytes);
    }

    /// Resets the stream at once and discards what is queued.
    pub(super) fn reset(&mut self, code: ErrorCode) {
        self.conn.reset(self.stream, code);
    }

    /// Discards the queued part of the response and returns its size.
    pub(super) fn discard(&mut self) -> usize {
        self.conn.discard(self.stream)
    }

    /// The call was answered before its request ended: what still arrives is discarded for a while.
    pub(super) fn ignore_rest(&mut self, now: Instant) {
        self.conn.linger_on(self.stream, now);
    }
}

impl Exchange {
    /// Returns flow-control credit to a caller.
    pub(super) fn credit_caller(&mut self, down: Downstream, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(mut caller) = CallerStream::of(&mut self.conns, down) {
            caller.credit(bytes);
        }
        self.mark_dirty(down.conn);
    }
}
