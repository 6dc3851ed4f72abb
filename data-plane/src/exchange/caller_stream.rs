//! Answers a call's caller: headers, data, trailers, failures of the proxy, and flow-control credit. The exchange
//! writes to callers only through [`CallerStream`], and hears of them only through the methods of `caller_input`; so a
//! protocol is one variant here and one module that has both directions. Callers use HTTP/2 today (`http2_caller`);
//! gRPC-Web, REST or WebSocket would stand beside it. Header lists are [`Fields`] whatever the protocol. Decisions about
//! calls do not belong here.

use std::time::Instant;

use heddle_h2::{Fields, StreamId};

use super::http2_caller::Http2Caller;
use super::owner::Exchange;
use super::state::{Call, Downstream, ResponseProgress};
#[cfg(test)]
use super::tests::memory_caller::MemoryCaller;
use crate::connection::{Conn, Connections};
use crate::failure::{Failure, FailureContext};
use crate::keys::CallKey;

/// The stream on which a call arrived, in the protocol of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallerStreamId {
    Http2(StreamId),
    #[cfg(test)]
    Memory(usize),
}

/// That stream, to answer on it. What is written is queued until the next flush of its connection.
pub(super) enum CallerStream<'w> {
    Http2(Http2Caller<'w>),
    #[cfg(test)]
    Memory(MemoryCaller),
}

/// The form in which a caller gets a failure.
pub(super) struct FailureForm<'c> {
    /// The request's content type, if it is gRPC.
    pub(super) grpc: Option<&'c [u8]>,
    /// The request's method is HEAD.
    pub(super) head: bool,
    pub(super) sent: ResponseProgress,
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
    pub(super) fn of(conns: &'w mut Connections, down: Downstream) -> Option<Self> {
        Some(Self::on(conns.get_mut(down.conn)?, down.stream))
    }

    #[inline]
    pub(super) fn on(conn: &'w mut Conn, stream: CallerStreamId) -> Self {
        match stream {
            CallerStreamId::Http2(stream) => Self::Http2(Http2Caller::new(conn, stream)),
            #[cfg(test)]
            CallerStreamId::Memory(stream) => Self::Memory(MemoryCaller(stream)),
        }
    }

    /// The stream belongs to this call from now on.
    #[inline]
    pub(super) fn begin(&mut self, call: CallKey) {
        in_its_protocol!(self, stream => stream.begin(call));
    }

    /// Forwards 1xx headers.
    pub(super) fn informational(&mut self, fields: &Fields) {
        in_its_protocol!(self, stream => stream.informational(fields));
    }

    /// Whether headers are written at once, which is not the case while the caller leaves much unread.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        in_its_protocol!(self, stream => stream.has_room())
    }

    /// Writes the response's headers, which are also its end if `end`. Returns how many of their bytes are queued; none
    /// if the caller has left meanwhile.
    #[inline]
    pub(super) fn headers(&mut self, fields: &Fields, end: bool) -> usize {
        in_its_protocol!(self, stream => stream.headers(fields, end))
    }

    /// Writes a part of the response's body and returns how much of it is queued. `None`: the caller takes no more.
    #[inline]
    pub(super) fn data(&mut self, data: &[u8], end: bool) -> Option<usize> {
        in_its_protocol!(self, stream => stream.data(data, end))
    }

    /// Writes the response's trailers and returns how many of their bytes are queued.
    #[inline]
    pub(super) fn trailers(&mut self, fields: &Fields) -> usize {
        in_its_protocol!(self, stream => stream.trailers(fields))
    }

    /// Writes a failure of the proxy, the end of the response, and returns how many bytes of it are queued; `None` if
    /// the call was cut instead, which also discards what was queued. `lists` is a buffer for header lists.
    pub(super) fn fail(
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
    pub(super) fn credit(&mut self, bytes: usize) {
        in_its_protocol!(self, stream => stream.credit(bytes));
    }

    /// Ends the call at once without an answer, and discards what is queued.
    pub(super) fn cut(&mut self) {
        in_its_protocol!(self, stream => stream.cut());
    }

    /// Discards the queued part of the response and returns its size.
    pub(super) fn discard(&mut self) -> usize {
        in_its_protocol!(self, stream => stream.discard())
    }

    /// The call was answered before its request ended: what still arrives is discarded for a while.
    pub(super) fn ignore_rest(&mut self, now: Instant) {
        in_its_protocol!(self, stream => stream.ignore_rest(now));
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
