//! Answers a call's caller: headers, data, trailers, failures of the proxy, and flow-control credit. The exchange
//! writes to callers only through [`CallerStream`], and hears of them only through the methods of `request::input`; so a
//! protocol is one variant here, and one file that makes its events such input. Callers use HTTP/2 today (`http2`, and
//! `events::caller`); gRPC-Web, REST or WebSocket would be beside it. Header lists are [`Fields`] whatever the protocol. Decisions about
//! calls do not belong here.

mod http2;

use std::time::Instant;

use heddle_h2::Fields;

use crate::connection::{Conn, Connections};
use crate::exchange::answer::http2::Http2Caller;
use crate::exchange::call::{Call, CallerStreamId, Downstream, ResponseProgress};
use crate::failure::{Failure, FailureContext};
use crate::keys::CallKey;

#[cfg(test)]
use super::tests::memory_caller::MemoryCaller;

/// The stream on which a call arrived, to answer on it. What is written is queued until the next flush of its connection.
pub(in crate::exchange) enum CallerStream<'w> {
    Http2(Http2Caller<'w>),
    #[cfg(test)]
    Memory(MemoryCaller),
}

/// The form in which a caller gets a failure.
pub(in crate::exchange) struct FailureForm<'c> {
    /// The request's content type, if it is gRPC.
    pub(in crate::exchange) grpc: Option<&'c [u8]>,
    /// The request's method is HEAD.
    pub(in crate::exchange) head: bool,
    pub(in crate::exchange) sent: ResponseProgress,
}

impl<'c> FailureForm<'c> {
    pub(in crate::exchange) fn of(call: &'c Call) -> Self {
        let content_type = call.request.fields().get(b"content-type");
        Self {
            grpc: call
                .request
                .is_grpc()
                .then(|| content_type.unwrap_or(b"application/grpc")),
            head: call.request.fields().method() == Some(b"HEAD"),
            sent: call.response.progress(),
        }
    }
}

/// Calls a method of the caller's protocol.
macro_rules! in_its_protocol {
    ($caller:ident, $stream:ident => $what:expr) => {
        match $caller {
            Self::Http2($stream) => $what,
            #[cfg(test)]
            Self::Memory($stream) => $what,
        }
    };
}

impl<'w> CallerStream<'w> {
    /// The caller's stream, if its connection still exists.
    #[inline]
    pub(in crate::exchange) fn of(conns: &'w mut Connections, down: Downstream) -> Option<Self> {
        Some(Self::on(conns.get_mut(down.conn)?, down.stream))
    }

    #[inline]
    pub(in crate::exchange) fn on(conn: &'w mut Conn, stream: CallerStreamId) -> Self {
        match stream {
            CallerStreamId::Http2(stream) => Self::Http2(Http2Caller::new(conn, stream)),
            #[cfg(test)]
            CallerStreamId::Memory(stream) => Self::Memory(MemoryCaller(stream)),
        }
    }

    /// The stream belongs to this call from now on.
    #[inline]
    pub(in crate::exchange) fn begin(&mut self, call: CallKey) {
        in_its_protocol!(self, stream => stream.begin(call));
    }

    /// Forwards 1xx headers.
    pub(in crate::exchange) fn informational(&mut self, fields: &Fields) {
        in_its_protocol!(self, stream => stream.informational(fields));
    }

    /// Whether headers are written at once, which is not the case while the caller leaves much unread.
    #[inline]
    pub(in crate::exchange) fn has_room(&self) -> bool {
        in_its_protocol!(self, stream => stream.has_room())
    }

    /// Writes the response's headers, which are also its end if `end`. Returns how many of their bytes are queued; none
    /// if the caller has left meanwhile.
    #[inline]
    pub(in crate::exchange) fn headers(&mut self, fields: &Fields, end: bool) -> usize {
        in_its_protocol!(self, stream => stream.headers(fields, end))
    }

    /// Writes a part of the response's body and returns how much of it is queued. `None`: the caller takes no more.
    #[inline]
    pub(in crate::exchange) fn data(&mut self, data: &[u8], end: bool) -> Option<usize> {
        in_its_protocol!(self, stream => stream.data(data, end))
    }

    /// Writes the response's trailers and returns how many of their bytes are queued.
    #[inline]
    pub(in crate::exchange) fn trailers(&mut self, fields: &Fields) -> usize {
        in_its_protocol!(self, stream => stream.trailers(fields))
    }

    /// Writes a failure of the proxy, the end of the response, and returns how many bytes of it are queued; `None` if
    /// the call was cut instead, which also discards what was queued. `lists` is a buffer for header lists.
    pub(in crate::exchange) fn fail(
        &mut self,
        failure: &Failure,
        context: FailureContext<'_>,
        form: &FailureForm<'_>,
        lists: &mut Fields,
    ) -> Option<usize> {
        in_its_protocol!(self, stream => stream.fail(failure, context, form, lists))
    }

    /// What the caller sent has been forwarded: it may send this many bytes more.
    #[inline]
    pub(in crate::exchange) fn credit(&mut self, bytes: usize) {
        in_its_protocol!(self, stream => stream.credit(bytes));
    }

    /// Ends the call at once without an answer, and discards what is queued.
    pub(in crate::exchange) fn cut(&mut self) {
        in_its_protocol!(self, stream => stream.cut());
    }

    /// Discards the queued part of the response and returns its size.
    pub(in crate::exchange) fn discard(&mut self) -> usize {
        in_its_protocol!(self, stream => stream.discard())
    }

    /// The call was answered before its request ended: what still arrives is discarded for a while.
    pub(in crate::exchange) fn ignore_rest(&mut self, now: Instant) {
        in_its_protocol!(self, stream => stream.ignore_rest(now));
    }
}
