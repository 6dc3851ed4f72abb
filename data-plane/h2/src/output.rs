//! The contiguous buffer of bytes to be written. Takes complete frames in order; gives a slice, and
//! is told how much of it was written. Who may write next is decided in `queue.rs`.

use crate::error::ErrorCode;
use crate::frame::{HEAD_BYTES, Head, flag, kind};

/// An idle connection keeps no more memory than this for its next output.
const IDLE_BYTES: usize = 1024;
/// Written bytes are removed from the buffer, and their memory is released, when there are this many, and at least half:
/// so a peer that does not read holds at most twice the memory of what is queued for it, and this much.
const COMPACT_BYTES: usize = 4 * 1024;

/// Bytes to be written.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    start: usize,
    control: Unread,
    /// The last DATA frame: more data of the same stream can be appended to it.
    last_data: Option<LastData>,
}

/// The position of the last DATA frame; it can grow only while it is the last frame.
#[derive(Clone, Copy, Debug)]
struct LastData {
    stream: u32,
    at: usize,
    len: usize,
}

/// The largest size to which a frame grows: every peer accepts it (RFC 9113 §4.2).
const JOINED_BYTES: usize = 16 * 1024;

/// The number of answers to the peer that are still in the output. Two generations: when the
/// output has moved past the end of the older one, the newer takes its place. All of the newer are
/// unread, so a slow reader is never overcounted; the older are at most as many.
#[derive(Debug, Default)]
struct Unread {
    newer: usize,
    older_end: usize,
}

impl Unread {
    #[inline]
    fn add(&mut self, end: usize) {
        if self.older_end == 0 {
            self.older_end = end;
        } else {
            self.newer += 1;
        }
    }

    /// The output was written up to `start`, of `end` that it has.
    fn written(&mut self, start: usize, end: usize) {
        if start >= end {
            *self = Self::default();
        } else if start >= self.older_end {
            let any = std::mem::take(&mut self.newer) > 0;
            self.older_end = if any { end } else { 0 };
        }
    }

    /// `by` bytes were moved out in front.
    fn moved(&mut self, by: usize) {
        self.older_end = self.older_end.saturating_sub(by);
    }
}

impl Output {
    #[inline]
    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.start)
    }

    /// So many bytes were written.
    pub(crate) fn advance(&mut self, written: usize) {
        self.start = self.bytes.len().min(self.start.saturating_add(written));
        self.control.written(self.start, self.bytes.len());
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            self.last_data = None;
        } else if self.start >= COMPACT_BYTES && self.start * 2 >= self.bytes.len() {
            self.bytes.drain(..self.start);
            self.bytes.shrink_to(COMPACT_BYTES);
            self.last_data = None;
            self.control.moved(self.start);
            self.start = 0;
        }
    }

    /// Memory that is kept for later bytes; none is counted while some wait.
    pub(crate) fn spare_bytes(&self) -> usize {
        match self.bytes.is_empty() {
            true => self.bytes.capacity(),
            false => 0,
        }
    }

    /// Releases memory that an idle connection does not need.
    pub(crate) fn shrink(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > IDLE_BYTES {
            self.bytes = Vec::new();
        }
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// A lower bound of the unread answers to the peer.
    pub(crate) fn unread_control(&self) -> usize {
        self.control.newer
    }

    #[inline]
    fn frame(&mut self, head: Head, payload: &[u8]) {
        self.bytes.reserve(HEAD_BYTES + payload.len());
        self.bytes.extend_from_slice(&head.to_bytes());
        self.bytes.extend_from_slice(payload);
    }

    fn small(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let head = Head {
            len,
            kind,
            flags,
            stream,
        };
        self.frame(head, payload);
    }

    fn count_control(&mut self) {
        self.control.add(self.bytes.len());
    }

    pub(crate) fn preface(&mut self, preface: &[u8]) {
        self.bytes.extend_from_slice(preface);
    }

    /// One DATA frame, or more of the last one: many small frames cost the peer more than their
    /// bytes, and some count them as abuse. `data` is no longer than the peer's
    /// SETTINGS_MAX_FRAME_SIZE.
    #[inline]
    pub(crate) fn data(&mut self, stream: u32, data: &[u8], end_stream: bool) {
        if self.join(stream, data, end_stream) {
            return;
        }
        let at = self.bytes.len();
        let len = data.len();
        self.last_data = (!end_stream).then_some(LastData { stream, at, len });
        let head = Head {
            len: u32::try_from(data.len()).unwrap_or(0),
            kind: kind::DATA,
            flags: if end_stream { flag::END_STREAM } else { 0 },
            stream,
        };
        self.frame(head, data);
    }

    /// Appends to the last frame if it is of this stream, not partly written, and not full.
    #[inline]
    fn join(&mut self, stream: u32, data: &[u8], end_stream: bool) -> bool {
        let Some(last) = self.last_data.filter(|last| last.stream == stream) else {
            return false;
        };
        let is_last = last.at + HEAD_BYTES + last.len == self.bytes.len();
        let len = last.len + data.len();
        if !is_last || last.at < self.start || len > JOINED_BYTES {
            return false;
        }
        self.bytes.extend_from_slice(data);
        let head = Head {
            len: u32::try_from(len).unwrap_or(0),
            kind: kind::DATA,
            flags: if end_stream { flag::END_STREAM } else { 0 },
            stream,
        };
        self.patch(last.at, head);
        self.last_data = (!end_stream).then_some(LastData { len, ..last });
        true
    }

    /// HEADERS, and CONTINUATION if the block is longer than a frame of the peer may be. The block
    /// is appended by `encode`.
    #[inline]
    pub(crate) fn headers(
        &mut self,
        stream: u32,
        end_stream: bool,
        max_frame_size: u32,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEAD_BYTES]);
        encode(&mut self.bytes);
        let block = at + HEAD_BYTES;
        let max = usize::try_from(max_frame_size).unwrap_or(usize::MAX);
        let len = self.bytes.len().saturating_sub(block);
        let es = if end_stream { flag::END_STREAM } else { 0 };
        if len <= max {
            let head = Head {
                len: u32::try_from(len).unwrap_or(0),
                kind: kind::HEADERS,
                flags: es | flag::END_HEADERS,
                stream,
            };
            self.patch(at, head);
            return;
        }
        let rest = self.bytes.split_off(block + max);
        let head = Head {
            len: max_frame_size,
            kind: kind::HEADERS,
            flags: es,
            stream,
        };
        self.patch(at, head);
        let mut pieces = rest.chunks(max).peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            let flags = if last { flag::END_HEADERS } else { 0 };
            self.small(kind::CONTINUATION, flags, stream, piece);
        }
    }

    #[inline]
    fn patch(&mut self, at: usize, head: Head) {
        if let Some(place) = self.bytes.get_mut(at..at + HEAD_BYTES) {
            place.copy_from_slice(&head.to_bytes());
        }
    }

    pub(crate) fn reset(&mut self, stream: u32, code: ErrorCode) {
        self.small(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
    }

    /// A RST_STREAM caused by the peer.
    pub(crate) fn provoked_reset(&mut self, stream: u32, code: ErrorCode) {
        self.reset(stream, code);
        self.count_control();
    }

    pub(crate) fn settings(&mut self, values: &[(u16, u32)]) {
        let head = Head {
            len: u32::try_from(values.len() * 6).unwrap_or(0),
            kind: kind::SETTINGS,
            flags: 0,
            stream: 0,
        };
        self.frame(head, &[]);
        for (id, value) in values {
            self.bytes.extend_from_slice(&id.to_be_bytes());
            self.bytes.extend_from_slice(&value.to_be_bytes());
        }
    }

    pub(crate) fn settings_ack(&mut self) {
        self.small(kind::SETTINGS, flag::ACK, 0, &[]);
        self.count_control();
    }

    pub(crate) fn ping(&mut self, payload: [u8; 8]) {
        self.small(kind::PING, 0, 0, &payload);
    }

    pub(crate) fn ping_ack(&mut self, payload: &[u8]) {
        self.small(kind::PING, flag::ACK, 0, payload);
        self.count_control();
    }

    pub(crate) fn window_update(&mut self, stream: u32, increment: u32) {
        self.small(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
    }

    pub(crate) fn goaway(&mut self, last: u32, code: ErrorCode, debug: &[u8]) {
        let head = Head {
            len: u32::try_from(8 + debug.len()).unwrap_or(8),
            kind: kind::GOAWAY,
            flags: 0,
            stream: 0,
        };
        self.frame(head, &last.to_be_bytes());
        self.bytes.extend_from_slice(&code.0.to_be_bytes());
        self.bytes.extend_from_slice(debug);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>, u8)> {
        let mut frames = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let head = Head::parse(head);
            let len = usize::try_from(head.len).unwrap();
            frames.push((head.stream, rest[..len].to_vec(), head.flags));
            bytes = &rest[len..];
        }
        frames
    }

    #[test]
    fn small_data_of_one_stream_goes_in_one_frame() {
        let mut output = Output::default();
        output.data(1, b"ab", false);
        output.data(1, b"c", false);
        output.data(3, b"x", false);
        output.data(1, b"d", false);
        output.window_update(1, 5);
        output.data(1, b"e", true);
        output.data(3, b"y", false);
        let update = 5u32.to_be_bytes().to_vec();
        let expect = vec![
            (1, b"abc".to_vec(), 0),
            (3, b"x".to_vec(), 0),
            (1, b"d".to_vec(), 0),
            (1, update, 0),
            (1, b"e".to_vec(), flag::END_STREAM),
            (3, b"y".to_vec(), 0),
        ];
        assert_eq!(frames(output.pending()), expect);
    }

    #[test]
    fn a_frame_that_is_being_written_or_full_or_ended_is_left_alone() {
        let mut output = Output::default();
        output.data(1, b"ab", false);
        let mut sent = output.pending()[..1].to_vec();
        output.advance(1);
        output.data(1, b"c", false);
        output.data(1, &[7; JOINED_BYTES], false);
        output.data(1, b"d", true);
        sent.extend_from_slice(output.pending());
        let frames = frames(&sent);
        let sizes: Vec<usize> = frames.iter().map(|(_, data, _)| data.len()).collect();
        assert_eq!(sizes, [2, 1, JOINED_BYTES, 1]);
        assert_eq!(frames[3].2, flag::END_STREAM);
        output.advance(output.len());
        output.data(1, b"e", false);
        assert_eq!(
            output.len(),
            HEAD_BYTES + 1,
            "nothing of what was written is remembered"
        );
    }
}
