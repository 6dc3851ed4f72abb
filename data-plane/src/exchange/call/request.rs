//! The request of a call: its header list, the part of its body and the trailers that are kept for a retry, and how many
//! bytes of the body have arrived and been credited to the caller.

use heddle_h2::Fields;

use super::replay::Replay;

#[derive(Debug)]
pub(in crate::exchange) struct Request {
    /// As the caller sent them, without `heddle-*`; edited for each attempt.
    fields: Fields,
    replay: Replay,
    trailers: Option<Box<Fields>>,
    grpc: bool,
    ended: bool,
    /// Bytes of the body that have arrived, and how many of them have been credited to the caller. Never more credited
    /// than arrived.
    received: usize,
    credited: usize,
}

impl Request {
    #[inline]
    pub(super) fn new(fields: Fields, replay: Replay, grpc: bool, ended: bool) -> Self {
        Self {
            fields,
            replay,
            trailers: None,
            grpc,
            ended,
            received: 0,
            credited: 0,
        }
    }

    /// The buffers of an ended call.
    #[inline]
    pub(super) fn take_buffers(&mut self) -> (Fields, Replay) {
        let fields = std::mem::take(&mut self.fields);
        (fields, std::mem::take(&mut self.replay))
    }

    // ---- header list

    #[inline]
    pub(in crate::exchange) fn fields(&self) -> &Fields {
        &self.fields
    }

    #[inline]
    pub(in crate::exchange) fn fields_mut(&mut self) -> &mut Fields {
        &mut self.fields
    }

    /// `:path`; empty if there is none.
    #[inline]
    pub(in crate::exchange) fn path(&self) -> &[u8] {
        self.fields.path().unwrap_or_default()
    }

    /// A request may name its authority in Host alone (RFC 9113 §8.3.1).
    #[inline]
    pub(in crate::exchange) fn authority(&self) -> Option<&[u8]> {
        let fields = &self.fields;
        fields.authority().or_else(|| fields.get(b"host"))
    }

    /// Whether it is gRPC, so that failures are sent as gRPC statuses.
    #[inline]
    pub(in crate::exchange) fn is_grpc(&self) -> bool {
        self.grpc
    }

    // ---- body and trailers

    /// A part of the body has arrived; `end` if it is the last one.
    #[inline]
    pub(in crate::exchange) fn receive(&mut self, bytes: usize, end: bool) {
        self.received += bytes;
        self.ended |= end;
    }

    /// The trailers have arrived; kept if the call can be retried.
    pub(in crate::exchange) fn receive_trailers(&mut self, trailers: &Fields, keep: bool) {
        self.ended = true;
        if keep {
            self.trailers = Some(Box::new(trailers.clone()));
        }
    }

    #[inline]
    pub(in crate::exchange) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Keeps a part of the body whatever its size, since it has not been sent yet. The stream's window is the bound.
    pub(in crate::exchange) fn keep(&mut self, data: &[u8]) {
        self.replay.keep(data);
    }

    /// Keeps a part of the body that is being sent; false if the body exceeds `bound`, and none of it is kept.
    #[inline]
    pub(super) fn keep_within(&mut self, data: &[u8], bound: usize) -> bool {
        self.replay.push(data, bound)
    }

    /// What is kept of the body: all of it so far while [`Request::is_whole`].
    #[inline]
    pub(in crate::exchange) fn body(&self) -> &[u8] {
        self.replay.bytes()
    }

    #[inline]
    pub(in crate::exchange) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref()
    }

    /// Whether everything that has arrived is kept, so that it can be sent again.
    #[inline]
    pub(in crate::exchange) fn is_whole(&self) -> bool {
        !self.replay.is_incomplete()
    }

    #[inline]
    pub(super) fn drop_body(&mut self) {
        self.replay.give_up();
    }

    /// Nothing is sent again: drops body and trailers.
    #[inline]
    pub(super) fn drop_kept(&mut self) {
        self.replay.give_up();
        self.trailers = None;
    }

    /// Memory of what is kept.
    #[inline]
    pub(super) fn kept_bytes(&self) -> usize {
        let trailers = self.trailers.as_ref();
        let trailers = trailers.map_or(0, |trailers| trailers.memory_bytes());
        self.replay.len() + self.fields.memory_bytes() + trailers
    }

    // ---- credit

    /// The server has been sent `written` bytes in this attempt. Returns how many of them were not credited before, and
    /// counts them as credited.
    #[inline]
    pub(in crate::exchange) fn credit_written(&mut self, written: usize) -> usize {
        let fresh = written.saturating_sub(self.credited);
        self.credited += fresh;
        fresh
    }

    /// Bytes that nobody needs have been discarded: counts them as credited.
    pub(in crate::exchange) fn credit_discarded(&mut self, bytes: usize) {
        self.credited = self.received.min(self.credited + bytes);
    }

    /// Bytes that have arrived and have not been credited.
    pub(in crate::exchange) fn uncredited(&self) -> usize {
        self.received.saturating_sub(self.credited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_credited_once_whatever_the_attempts_write() {
        let mut request = Request::new(Fields::new(), Replay::default(), true, false);
        request.receive(10, false);
        assert_eq!(request.credit_written(6), 6);
        // Another attempt sends the same bytes again.
        assert_eq!((request.credit_written(4), request.uncredited()), (0, 4));
        assert_eq!(request.credit_written(7), 1);
        request.credit_discarded(9);
        assert_eq!((request.uncredited(), request.has_ended()), (0, false));
    }
}
