//! Callers that speak HTTP/2: answers become frames of their stream, and events of their connection become input of
//! their calls. The token of a stream is the key of its call.

use std::time::Instant;

use heddle_h2::{ErrorCode, Event, Fields, Initiator, Kind, StreamId};

use super::caller_input::CallerEnd;
use super::caller_stream::{CallerStreamId, FailureForm};
use super::owner::Exchange;
use super::state::ResponseProgress;
use crate::arena::Key;
use crate::caller::Role;
use crate::connection::{Conn, HELLO, LINGER};
use crate::failure::{self, Failure, FailureContext};
use crate::keys::{CallKey, ConnKey};

/// gRPC's CANCELLED.
const CANCELLED: u8 = 1;

/// A stream of a caller. See [`super::caller_stream::CallerStream`] for its methods.
pub(super) struct Http2Caller<'w> {
    conn: &'w mut Conn,
    stream: StreamId,
}

impl<'w> Http2Caller<'w> {
    #[inline]
    pub(super) fn new(conn: &'w mut Conn, stream: StreamId) -> Self {
        Self { conn, stream }
    }

    #[inline]
    pub(super) fn begin(&mut self, call: CallKey) {
        self.conn.set_token(self.stream, call.pack());
    }

    pub(super) fn informational(&mut self, fields: &Fields) {
        // A stream that has been reset meanwhile needs none.
        let _ = self.conn.headers(self.stream, fields, false);
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.conn.has_output_room()
    }

    #[inline]
    pub(super) fn headers(&mut self, fields: &Fields, end: bool) -> usize {
        let queued = self.conn.headers(self.stream, fields, end);
        queued.unwrap_or(0)
    }

    #[inline]
    pub(super) fn data(&mut self, data: &[u8], end: bool) -> Option<usize> {
        let sent = self.conn.data(self.stream, data, end).ok()?;
        Some(data.len() - sent)
    }

    #[inline]
    pub(super) fn trailers(&mut self, fields: &Fields) -> usize {
        self.headers(fields, true)
    }

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
                self.conn.reset(self.stream, code);
                None
            }
        }
    }

    #[inline]
    pub(super) fn credit(&mut self, bytes: usize) {
        self.conn.release(self.stream, bytes);
    }

    pub(super) fn cut(&mut self) {
        self.conn.reset(self.stream, ErrorCode::CANCEL);
    }

    pub(super) fn discard(&mut self) -> usize {
        self.conn.discard(self.stream)
    }

    pub(super) fn ignore_rest(&mut self, now: Instant) {
        self.conn.linger_on(self.stream, now);
    }
}

impl Exchange {
    /// An event of an accepted connection.
    pub(super) fn on_down_event(&mut self, conn: ConnKey, event: Event<'_>, fields: &mut Fields) {
        match event {
            Event::Headers {
                stream,
                kind: Kind::Request,
                end_stream,
                ..
            } => {
                let role = self.conns.get(conn).and_then(Conn::role);
                if role == Some(Role::Inbound) && self.begin_hello(conn, stream, end_stream, fields)
                {
                    return;
                }
                self.on_request(conn, CallerStreamId::Http2(stream), end_stream, fields);
            }
            Event::Headers {
                token: LINGER | HELLO,
                ..
            } => {}
            Event::Headers { token, .. } => self.on_request_trailers(Key::unpack(token), fields),
            Event::TooLarge {
                stream,
                kind: Kind::Request,
                end_stream,
                ..
            } => {
                let stream = CallerStreamId::Http2(stream);
                self.on_request_too_large(conn, stream, end_stream, fields);
            }
            Event::TooLarge { token, .. } => self.on_request_trailers_too_large(Key::unpack(token)),
            Event::Data {
                stream,
                token: HELLO,
                data,
                end_stream,
            } => {
                self.on_hello_data(conn, stream, data, end_stream);
            }
            Event::Data {
                stream,
                token,
                data,
                end_stream,
            } => {
                let of_call = token != LINGER;
                if !(of_call && self.on_request_data(Key::unpack(token), data, end_stream)) {
                    self.release(conn, stream, data.len());
                }
            }
            Event::Reset {
                token: LINGER | HELLO,
                ..
            } => {}
            Event::Reset { token, by, .. } => {
                let how = match by {
                    Initiator::Remote => CallerEnd::Cancelled,
                    // Our state machine reset the stream, because of an error of the caller.
                    Initiator::Local => CallerEnd::BrokeProtocol,
                };
                self.on_caller_end(Key::unpack(token), how);
            }
            Event::PingAck(payload) => self.on_ping_ack(conn, payload),
            // A client's GOAWAY needs no reaction, and its settings are handled by the HTTP/2 state machine.
            Event::GoAway { .. } | Event::Settings => {}
        }
    }
}
