//! The streams of a connection, their calls, and the bytes that both have buffered. Takes calls by key, and frames.
//! What a call is does not belong here.

use std::time::{Duration, Instant};

use heddle_h2::{Drained, ErrorCode, Fields, Gone, OpenError, StreamId};

use super::conn::{Conn, LINGER, Side};
use crate::keys::CallKey;
use crate::policy::buffers::ConnCharge;

/// How long a caller may continue to send after it was answered, before the stream is reset with NO_ERROR.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Number of such streams that one connection may have; beyond it the oldest is reset.
const LINGER_STREAMS: usize = 128;

impl Conn {
    pub(crate) fn calls(&self) -> &[CallKey] {
        &self.calls
    }

    /// Takes its calls, which no longer have a stream here.
    pub(crate) fn take_calls(&mut self) -> Vec<CallKey> {
        std::mem::take(&mut self.calls)
    }

    /// Adds a call; returns its index.
    pub(crate) fn add_call(&mut self, call: CallKey) -> usize {
        self.calls.push(call);
        self.calls.len() - 1
    }

    /// Removes the call at an index if it is still there. `Some(Some(moved))`: `moved` has that index now.
    #[allow(
        clippy::option_option,
        reason = "whether it was there, and what took its place"
    )]
    pub(crate) fn remove_call(&mut self, call: CallKey, index: usize) -> Option<Option<CallKey>> {
        if self.calls.get(index) != Some(&call) {
            return None;
        }
        self.calls.swap_remove(index);
        Some(self.calls.get(index).copied())
    }

    /// A request has arrived: adds its call.
    pub(crate) fn begin_call(&mut self, call: CallKey) {
        self.calls.push(call);
        if let Side::Accepted(accepted) = &mut self.side {
            accepted.on_request();
        }
    }

    /// Sets the token that events of a stream have from now on.
    pub(crate) fn set_token(&mut self, stream: StreamId, token: u64) {
        self.h2.set_token(stream, token);
    }

    /// Opens a stream for a token.
    pub(crate) fn open(
        &mut self,
        request: &Fields,
        token: u64,
        end: bool,
    ) -> Result<StreamId, OpenError> {
        self.h2.open(request, token, end)
    }

    /// Sends a header list; returns how many of its bytes are queued in the HTTP/2 state machine.
    pub(crate) fn headers(
        &mut self,
        stream: StreamId,
        fields: &Fields,
        end: bool,
    ) -> Result<usize, Gone> {
        self.h2.headers(stream, fields, end)
    }

    /// Sends DATA; returns how many of its bytes are in the output.
    pub(crate) fn data(&mut self, stream: StreamId, data: &[u8], end: bool) -> Result<usize, Gone> {
        self.h2.data(stream, data, end)
    }

    pub(crate) fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        self.h2.reset(stream, code);
    }

    /// Bytes of a stream have been forwarded: its sender may send more.
    pub(crate) fn release(&mut self, stream: StreamId, bytes: usize) {
        self.h2.release(stream, bytes);
    }

    /// Discards what is queued on a stream; returns how many bytes.
    pub(crate) fn discard(&mut self, stream: StreamId) -> usize {
        self.h2.discard(stream)
    }

    /// The next stream of which queued bytes have moved to the output.
    pub(crate) fn next_drained(&mut self) -> Option<Drained> {
        self.h2.poll_drained()
    }

    /// Whether a header list would be put into the output at once.
    pub(crate) fn has_output_room(&self) -> bool {
        self.h2.has_output_room()
    }

    pub(crate) fn peer_header_list_bytes(&self) -> Option<u32> {
        self.h2.peer_header_list_bytes()
    }

    pub(crate) fn live_streams(&self) -> usize {
        self.h2.live_streams()
    }

    /// The stream was answered: what still arrives of its request is discarded for a while.
    pub(crate) fn linger_on(&mut self, stream: StreamId, now: Instant) {
        self.h2.set_token(stream, LINGER);
        if self.linger.len() >= LINGER_STREAMS
            && let Some((_, oldest)) = self.linger.pop_front()
        {
            self.h2.reset(oldest, ErrorCode::NO_ERROR);
        }
        self.linger.push_back((now + LINGER_TIME, stream));
    }

    /// The buffered bytes that are charged to it, for itself and as the caller of its calls.
    pub(crate) fn buffered(&self) -> &ConnCharge {
        &self.buffered
    }

    pub(crate) fn buffered_mut(&mut self) -> &mut ConnCharge {
        &mut self.buffered
    }

    /// Bytes of a frame or header block that is not complete yet.
    pub(crate) fn partial_bytes(&self) -> usize {
        self.h2.partial_bytes()
    }

    /// Bytes in its HTTP/2 state machine: unsent ones, and incomplete frames and header blocks.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.h2.queued_bytes() + self.h2.partial_bytes()
    }

    /// Whether it keeps more than `most` bytes for later, and did not before.
    #[inline]
    pub(super) fn begins_to_keep_spare(&mut self, most: usize) -> bool {
        let begins = !self.keeps_spare && self.h2.spare_bytes() > most;
        self.keeps_spare |= begins;
        begins
    }

    pub(super) fn release_spare(&mut self) {
        self.keeps_spare = false;
        self.h2.release_spare();
    }

    /// Saves memory: windows do not grow, and less output is kept for a peer that does not read.
    pub(super) fn set_low_memory(&mut self, low_memory: bool) {
        self.h2.set_low_memory(low_memory);
    }

    /// Resets answered streams whose request has lasted too long.
    pub(crate) fn end_lingering(&mut self, now: Instant) {
        while let Some((_, stream)) = self.linger.pop_front_if(|(until, _)| *until <= now) {
            self.h2.reset(stream, ErrorCode::NO_ERROR);
        }
    }
}
