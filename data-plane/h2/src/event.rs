//! The results of [`crate::Connection::recv`], and the progress of queued output. Small values:
//! bytes are slices of the input, and header lists are in the caller's [`crate::Fields`]. No value
//! allocates memory.

use std::fmt;

use crate::error::{ErrorCode, Initiator};

/// A stream's number on its connection (RFC 9113 §5.1.1), never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(crate) u32);

impl StreamId {
    /// The number on the wire.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}", self.0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The application's own handle of a stream, given back in every event; 0 until set.
pub type Token = u64;

/// What a header list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a stream (we are the server).
    Request,
    /// The final response (we are the client).
    Response,
    /// A 1xx response; a final one is still to come.
    Informational,
    /// Ends the peer's half, after DATA or straight after the response.
    Trailers,
}

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// A valid header list; it is in the `fields` given to `recv`.
    Headers {
        stream: StreamId,
        token: Token,
        kind: Kind,
        end_stream: bool,
    },
    /// A header list over `header_list_bytes` or `header_fields`; `fields` has what fitted and, wherever
    /// they were, `grpc-status`, `grpc-message` (at most 4 KiB) and `content-type`. A request is not
    /// validated. The application answers (431, RESOURCE_EXHAUSTED) or resets.
    TooLarge {
        stream: StreamId,
        token: Token,
        kind: Kind,
        end_stream: bool,
    },
    /// A piece of the body, without padding. Empty only with `end_stream`. Call
    /// [`crate::Connection::release`] when it has been forwarded.
    Data {
        stream: StreamId,
        token: Token,
        data: &'i [u8],
        end_stream: bool,
    },
    /// The stream is over: RST_STREAM of the peer, our own for a stream error of the peer (it is in the
    /// output), or a GOAWAY with a lower last id.
    Reset {
        stream: StreamId,
        token: Token,
        code: ErrorCode,
        /// The peer proves that it has not acted on the stream: REFUSED_STREAM, or above the last
        /// id of its GOAWAY. Safe to send again (RFC 9113 §8.7).
        unprocessed: bool,
        by: Initiator,
    },
    /// The peer accepts no new streams. Those above its last id follow as `Reset`.
    GoAway {
        code: ErrorCode,
        /// The debug data, as far as it was in the same read as the frame's head.
        debug: &'i [u8],
    },
    /// The answer to [`crate::Connection::ping`].
    PingAck([u8; 8]),
    /// The peer's settings arrived or changed: the limit of streams may have changed.
    Settings,
}

/// Queued data of a stream was moved into the output: DATA can be released at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    pub stream: StreamId,
    pub token: Token,
    /// DATA.
    pub bytes: usize,
    /// Header lists, as [`crate::Connection::headers`] counted them.
    pub list_bytes: usize,
}
