//! Answers to callers that speak HTTP/2: they become frames of the call's stream. The token of a stream is the key of its
//! call. Input from such callers is in `events::caller`.

use std::time::Instant;

use heddle_h2::{ErrorCode, Fields, StreamId};

use crate::connection::Conn;
use crate::exchange::answer::FailureForm;
use crate::exchange::call::{CANCELLED, ResponseProgress};
use crate::failure::{self, Failure, FailureContext};
use crate::keys::CallKey;

/// A stream of a caller. See [`super::CallerStream`] for its methods.
pub(in crate::exchange) struct Http2Caller<'w> {
    conn: &'w mut Conn,
    stream: StreamId,
}

impl<'w> Http2Caller<'w> {
    #[inline]
    pub(in crate::exchange) fn new(conn: &'w mut Conn, stream: StreamId) -> Self {
        Self { conn, stream }
    }

    #[inline]
    pub(in crate::exchange) fn begin(&mut self, call: CallKey) {
        self.conn.set_token(self.stream, call.pack());
    }

    pub(in crate::exchange) fn informational(&mut self, fields: &Fields) {
        // A stream that has been reset meanwhile needs none.
        let _ = self.conn.headers(self.stream, fields, false);
    }

    #[inline]
    pub(in crate::exchange) fn has_room(&self) -> bool {
        self.conn.has_output_room()
    }

    #[inline]
    pub(in crate::exchange) fn headers(&mut self, fields: &Fields, end: bool) -> usize {
        let queued = self.conn.headers(self.stream, fields, end);
        queued.unwrap_or(0)
    }

    #[inline]
    pub(in crate::exchange) fn data(&mut self, data: &[u8], end: bool) -> Option<usize> {
        let sent = self.conn.data(self.stream, data, end).ok()?;
        Some(data.len() - sent)
    }

    #[inline]
    pub(in crate::exchange) fn trailers(&mut self, fields: &Fields) -> usize {
        self.headers(fields, true)
    }

    pub(in crate::exchange) fn fail(
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
                self.conn.reset(self.stream, code);
                None
            }
        }
    }

    #[inline]
    pub(in crate::exchange) fn credit(&mut self, bytes: usize) {
        self.conn.release(self.stream, bytes);
    }

    pub(in crate::exchange) fn cut(&mut self) {
        self.conn.reset(self.stream, ErrorCode::CANCEL);
    }

    pub(in crate::exchange) fn discard(&mut self) -> usize {
        self.conn.discard(self.stream)
    }

    pub(in crate::exchange) fn ignore_rest(&mut self, now: Instant) {
        self.conn.linger_on(self.stream, now);
    }
}
