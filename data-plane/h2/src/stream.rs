//! One stream: its state (RFC 9113 §5.1), its windows, and what waits to be sent. Each half ends by
//! itself, so the state is a pair: open (neither ended), half-closed local (send ended),
//! half-closed remote (recv ended). Idle and closed streams are not kept; reserved ones cannot
//! exist, as pushes are refused. Knows no frames and no other streams.

use crate::Fields;
use crate::error::ErrorCode;
use crate::event::{StreamId, Token};
use crate::flow::{RecvWindow, SendWindow};
use crate::streams::Ring;

/// How far one direction of a message has come. Moves only downwards, but for a request that is abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Half {
    /// No (final) header list yet.
    Headers,
    /// Header list done; DATA or trailers may follow.
    Body,
    /// Only ours: the application has ended it, queued DATA must go first.
    Closing,
    /// END_STREAM has passed.
    Ended,
}

/// What waits for windows or space in the output, in order: a header list, DATA, and the end. Header
/// lists are not encoded yet, because HPACK needs the blocks in the order of sending. Exists only
/// while there is something to send.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// The request or response itself; empty if it has gone out.
    head: Fields,
    /// END_STREAM goes with `head`.
    head_ends: bool,
    data: Vec<u8>,
    start: usize,
    /// What follows the last byte.
    pub(crate) then: Then,
    /// Trailers, for `Then::Trailers`.
    pub(crate) trailers: Fields,
}

/// What follows queued DATA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Then {
    #[default]
    Nothing,
    /// END_STREAM on the last DATA frame.
    End,
    Trailers,
}

impl Pending {
    /// Bytes of queued DATA.
    pub(crate) fn len(&self) -> usize {
        self.data.len().saturating_sub(self.start)
    }

    /// Bytes of all that is queued, header lists included.
    pub(crate) fn bytes(&self) -> usize {
        self.len() + self.head.memory_bytes() + self.trailers.memory_bytes()
    }

    /// Queues a request or response; returns its memory.
    pub(crate) fn set_head(&mut self, head: &Fields, ends: bool) -> usize {
        self.head.clone_from(head);
        self.head_ends = ends;
        self.head.memory_bytes()
    }

    /// Queues trailers behind everything else; returns their memory.
    pub(crate) fn set_trailers(&mut self, trailers: &Fields) -> usize {
        self.trailers.clone_from(trailers);
        self.then = Then::Trailers;
        self.trailers.memory_bytes()
    }

    pub(crate) fn has_head(&self) -> bool {
        !self.head.is_empty()
    }

    /// The list that goes out first, and whether it ends the stream.
    pub(crate) fn head(&self) -> (&Fields, bool) {
        (&self.head, self.head_ends)
    }

    /// The first list has gone out.
    pub(crate) fn head_sent(&mut self) {
        self.head.clear();
    }

    /// Whether END_STREAM follows.
    pub(crate) fn ends(&self) -> bool {
        self.head_ends || self.then != Then::Nothing
    }

    /// Whether DATA is next, which needs windows; everything else needs only space in the output.
    pub(crate) fn needs_window(&self) -> bool {
        !self.has_head() && self.len() > 0
    }

    /// Drops queued DATA; returns the number of bytes.
    pub(crate) fn discard(&mut self) -> usize {
        let len = self.len();
        self.data.clear();
        self.start = 0;
        len
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        // Sent bytes are removed when they are the larger part, which bounds the cost of copying.
        if self.start > 0 && self.start * 2 >= self.data.len() {
            self.data.drain(..self.start);
            self.start = 0;
        }
        self.data.extend_from_slice(data);
    }

    pub(crate) fn front(&self, len: usize) -> &[u8] {
        let rest = self.data.get(self.start..).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }

    pub(crate) fn consume(&mut self, len: usize) {
        const KEPT_BYTES: usize = 4 * 1024;
        self.start = self.data.len().min(self.start + len);
        // What a slow peer has taken does not keep its memory. At three quarters, because the rest is copied.
        if self.start >= KEPT_BYTES && self.start / 3 >= self.len() && self.len() > 0 {
            self.data.drain(..self.start);
            self.data.shrink_to(KEPT_BYTES);
            self.start = 0;
        }
    }

    /// Drops queued DATA and the end behind it: nothing more will be sent. Returns the memory of what was dropped.
    pub(crate) fn abandon(&mut self) -> usize {
        let trailers = self.trailers.memory_bytes();
        self.then = Then::Nothing;
        self.trailers.clear();
        self.discard() + trailers
    }

    pub(crate) fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Prepares the buffer for another stream; large ones are released.
    pub(crate) fn recycle(&mut self) {
        const KEPT_BYTES: usize = 64 * 1024;
        const KEPT_LIST_BYTES: usize = 4 * 1024;
        self.data.clear();
        self.data.shrink_to(KEPT_BYTES);
        self.start = 0;
        self.then = Then::Nothing;
        self.head_ends = false;
        for list in [&mut self.head, &mut self.trailers] {
            list.clear();
            if list.capacity_bytes() > KEPT_LIST_BYTES {
                *list = Fields::new();
            }
        }
    }
}

/// A live stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) recv: Half,
    pub(crate) send: Half,
    /// A response to this request has no body, whatever its content-length says (HEAD).
    pub(crate) head: bool,
    /// The ring that it is in, if any.
    pub(crate) ready: Option<Ring>,
    pub(crate) prev: u32,
    pub(crate) next: u32,
    pub(crate) token: Token,
    /// When it was opened, by [`crate::Connection`]'s own clock.
    pub(crate) opened_ms: u32,
    pub(crate) send_window: SendWindow,
    pub(crate) recv_window: RecvWindow,
    /// The rest of the body by content-length.
    pub(crate) expect: Option<u64>,
    pub(crate) pending: Option<Box<Pending>>,
    /// A RST_STREAM that waits behind queued DATA (NO_ERROR only, RFC 9113 §8.1).
    pub(crate) reset: Option<ErrorCode>,
    /// The position of its last report in the queue of reports.
    pub(crate) report: u64,
}

impl Stream {
    pub(crate) fn new(id: u32, token: Token, send_window: u32, recv_window: u32) -> Self {
        Self {
            id,
            recv: Half::Headers,
            send: Half::Headers,
            head: false,
            ready: None,
            prev: 0,
            next: 0,
            token,
            opened_ms: 0,
            send_window: SendWindow::new(send_window),
            recv_window: RecvWindow::new(recv_window),
            expect: None,
            pending: None,
            reset: None,
            report: u64::MAX,
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        StreamId(self.id)
    }

    /// The ring in which its queue can continue, if the windows allow.
    pub(crate) fn next_ring(&self) -> Option<Ring> {
        let pending = self.pending.as_ref()?;
        match pending.needs_window() {
            false => Some(Ring::Lists),
            true if self.send_window.available() > 0 => Some(Ring::Data),
            true => None,
        }
    }

    /// Both halves have ended.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.recv == Half::Ended && self.send == Half::Ended
    }

    /// Whether content-length allows this received DATA (§8.1.1).
    #[inline]
    pub(crate) fn expects(&mut self, bytes: usize, end_stream: bool) -> bool {
        let Some(left) = self.expect else {
            return true;
        };
        let Some(left) = left.checked_sub(bytes as u64) else {
            return false;
        };
        self.expect = Some(left);
        !(end_stream && left > 0)
    }
}
