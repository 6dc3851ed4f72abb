//! The peer's bytes → frames → events (RFC 9113 §4, §6). The bytes may be split anywhere. DATA is
//! returned as slices of them, header lists in the caller's [`crate::Fields`]. Frames without a
//! message are in `control.rs`, header blocks in `message.rs`. An error here is one of the
//! connection; a stream error is answered with RST_STREAM and returned as an event. No meaning of
//! messages.

use std::time::Instant;

use crate::Fields;
use crate::connection::Connection;
use crate::error::{ConnectionError, ErrorCode};
use crate::event::{Event, StreamId};
use crate::fault::cost;
use crate::frame::{self, HEAD_BYTES, Head, flag, kind};
use crate::stream::Half;
use crate::streams::End;

/// The position in the peer's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    /// What is left of the client's preface.
    Preface(&'static [u8]),
    /// Before or inside a frame whose head has not been handled.
    Frame,
    /// Before the byte that says how much padding a DATA frame has.
    PadLength(Data),
    Data(Data),
    /// Bytes to skip: padding, unknown frames, DATA of streams that are gone.
    Skip(u32),
}

/// An incomplete DATA frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data {
    stream: u32,
    left: u32,
    pad: u32,
    end_stream: bool,
}

pub(crate) type Answer<'i> = Result<Option<Event<'i>>, ConnectionError>;

impl Connection {
    /// Takes bytes of the peer: consumes `input` until there is an event, all of it if there is
    /// none. Call until `None`. A header list is decoded into `fields`, which is cleared before.
    /// On an error the GOAWAY is in the output already, and every later call returns the same.
    pub fn recv<'i>(
        &mut self,
        input: &mut &'i [u8],
        fields: &mut Fields,
        now: Instant,
    ) -> Answer<'i> {
        if let Some(error) = self.failed {
            *input = &[];
            return Err(error);
        }
        self.now = now;
        let answer = self.read(input, fields);
        if let Err(error) = answer {
            *input = &[];
            self.fail(error);
        }
        answer
    }

    fn read<'i>(&mut self, input: &mut &'i [u8], fields: &mut Fields) -> Answer<'i> {
        if self.unprocessed_above.is_some()
            && let Some(event) = self.next_unprocessed()
        {
            return Ok(Some(event));
        }
        loop {
            let answer = match self.reading {
                Reading::Frame => {
                    if self.partial.is_empty()
                        && let Some((bytes, rest)) = input.split_first_chunk::<HEAD_BYTES>()
                    {
                        let head = Head::parse(bytes);
                        self.admit(&head)?;
                        if let Some((payload, rest)) = rest.split_at_checked(at_once(&head)) {
                            *input = rest;
                            let answer = self.on_frame(head, payload, input, fields);
                            if !matches!(answer, Ok(None)) {
                                return answer;
                            }
                            continue;
                        }
                    }
                    let Some(answer) = self.assemble(input, fields) else {
                        return Ok(None);
                    };
                    answer
                }
                Reading::Data(data) => {
                    if data.left > 0 && input.is_empty() {
                        return Ok(None);
                    }
                    self.read_data(data, input)
                }
                Reading::PadLength(data) => {
                    let Some((&pad, rest)) = input.split_first() else {
                        return Ok(None);
                    };
                    *input = rest;
                    self.read_pad_length(data, pad)
                }
                Reading::Skip(left) => {
                    let n = take(input, left).1;
                    self.skip(left - n);
                    if n < left {
                        return Ok(None);
                    }
                    Ok(None)
                }
                Reading::Preface(left) => {
                    if !self.read_preface(left, input)? {
                        return Ok(None);
                    }
                    Ok(None)
                }
            };
            if !matches!(answer, Ok(None)) {
                return answer;
            }
        }
    }

    fn read_preface(
        &mut self,
        left: &'static [u8],
        input: &mut &[u8],
    ) -> Result<bool, ConnectionError> {
        let n = left.len().min(input.len());
        let (came, rest) = input.split_at(n);
        let (due, left) = left.split_at(n);
        if came != due {
            return Err(ConnectionError::protocol(
                "connection does not start with the HTTP/2 preface",
            ));
        }
        *input = rest;
        if left.is_empty() {
            self.reading = Reading::Frame;
            return Ok(true);
        }
        self.reading = Reading::Preface(left);
        Ok(false)
    }

    /// Assembles a split frame in `partial`. `None`: more input is needed.
    #[inline(never)]
    fn assemble<'i>(&mut self, input: &mut &'i [u8], fields: &mut Fields) -> Option<Answer<'i>> {
        if self.fill(input, HEAD_BYTES)
            && let Some(bytes) = self.partial.first_chunk::<HEAD_BYTES>()
        {
            let head = Head::parse(bytes);
            if let Err(error) = self.admit(&head) {
                return Some(Err(error));
            }
            if self.fill(input, HEAD_BYTES + at_once(&head)) {
                let mut partial = std::mem::take(&mut self.partial);
                let payload = partial.get(HEAD_BYTES..).unwrap_or_default();
                let answer = self.on_frame(head, payload, input, fields);
                partial.clear();
                self.partial = partial;
                if self.block.head.is_none() {
                    self.incomplete_since = None;
                }
                return Some(answer);
            }
        }
        if !self.partial.is_empty() || self.block.head.is_some() {
            self.incomplete_since.get_or_insert(self.now);
        }
        None
    }

    /// Fills `partial` to `len` bytes, if there are as many.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        let n = len.saturating_sub(self.partial.len()).min(input.len());
        let (came, rest) = input.split_at(n);
        self.partial.extend_from_slice(came);
        *input = rest;
        self.partial.len() >= len
    }

    /// Checks by its head whether a frame is allowed now, before any of it is kept.
    #[inline]
    fn admit(&self, head: &Head) -> Result<(), ConnectionError> {
        match &self.block.head {
            // §6.10: nothing may come between the frames of a header block.
            Some(open) if head.kind != kind::CONTINUATION || head.stream != open.stream => {
                return Err(ConnectionError::protocol(
                    "another frame inside a header block",
                ));
            }
            None if head.kind == kind::CONTINUATION => {
                return Err(ConnectionError::protocol(
                    "CONTINUATION without an open header block",
                ));
            }
            _ => {}
        }
        if !self.peer.known && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(ConnectionError::protocol("first frame is not SETTINGS"));
        }
        head.check(self.config.max_frame_size)?;
        if head.kind == kind::PUSH_PROMISE {
            // §8.4: clients may not push, and as a client we said that servers may not.
            return Err(ConnectionError::protocol("PUSH_PROMISE was not allowed"));
        }
        Ok(())
    }

    fn on_frame<'i>(
        &mut self,
        head: Head,
        payload: &[u8],
        input: &mut &'i [u8],
        fields: &mut Fields,
    ) -> Answer<'i> {
        match head.kind {
            kind::DATA => self.on_data(&head, input),
            kind::HEADERS => self.on_headers(head, payload, fields),
            kind::CONTINUATION => self.on_continuation(&head, payload, fields),
            kind::WINDOW_UPDATE => self.on_window_update(&head, payload),
            kind::RST_STREAM => self.on_reset(&head, payload),
            kind::SETTINGS => self.on_settings(&head, payload),
            kind::PING => self.on_ping(&head, payload),
            kind::GOAWAY => self.on_goaway(&head, payload, input).map(Some),
            kind::PRIORITY => self.on_priority(&head),
            _ => {
                // §4.1, §5.5: unknown types are ignored.
                self.charge(cost::ORDINARY)?;
                self.skip(head.len);
                Ok(None)
            }
        }
    }

    pub(crate) fn skip(&mut self, bytes: u32) {
        self.reading = match bytes {
            0 => Reading::Frame,
            _ => Reading::Skip(bytes),
        };
    }

    /// The head of a DATA frame (§6.1): both windows are charged with the whole frame, padding
    /// included, even if the stream is gone.
    fn on_data<'i>(&mut self, head: &Head, input: &mut &'i [u8]) -> Answer<'i> {
        if head.has(flag::PADDED) && head.len == 0 {
            return Err(frame::NO_PAD_LENGTH);
        }
        let (id, len) = (head.stream, head.len);
        if !self.recv_window.take(len) {
            return Err(ConnectionError::flow_control(
                "DATA is over the connection's window",
            ));
        }
        let credit = self
            .recv_window
            .release(len as usize, self.targets.connection);
        if let Some(increment) = credit {
            self.output.window_update(0, increment);
        }
        self.probe.count(id, len);
        let fault = match self.streams.get(id) {
            Some(stream) => match stream.recv {
                Half::Body if stream.recv_window.take(len) => None,
                Half::Body => Some(ErrorCode::FLOW_CONTROL_ERROR),
                Half::Headers => Some(ErrorCode::PROTOCOL_ERROR),
                Half::Closing | Half::Ended => Some(ErrorCode::STREAM_CLOSED),
            },
            None => {
                self.not_idle(id)?;
                self.skip(len);
                return self.on_closed(id);
            }
        };
        if let Some(code) = fault {
            self.skip(len);
            return self.stream_error(id, code);
        }
        if !head.has(flag::PADDED)
            && let Some((piece, rest)) = input.split_at_checked(len as usize)
        {
            *input = rest;
            return self.on_piece(id, piece, head.has(flag::END_STREAM));
        }
        let data = Data {
            stream: id,
            left: len,
            pad: 0,
            end_stream: head.has(flag::END_STREAM),
        };
        self.reading = match head.has(flag::PADDED) {
            true => Reading::PadLength(data),
            false => Reading::Data(data),
        };
        Ok(None)
    }

    fn read_pad_length<'i>(&mut self, data: Data, pad: u8) -> Answer<'i> {
        let pad = u32::from(pad);
        let left = data.left.saturating_sub(1);
        let Some(left) = left.checked_sub(pad) else {
            return Err(frame::TOO_PADDED);
        };
        self.reading = Reading::Data(Data { left, pad, ..data });
        // Nobody else will release it.
        self.release(StreamId(data.stream), pad as usize + 1);
        Ok(None)
    }

    /// A piece of a DATA frame.
    #[inline]
    fn read_data<'i>(&mut self, mut data: Data, input: &mut &'i [u8]) -> Answer<'i> {
        let (piece, n) = take(input, data.left);
        data.left -= n;
        let last = data.left == 0;
        match last {
            true => self.skip(data.pad),
            false => self.reading = Reading::Data(data),
        }
        self.on_piece(data.stream, piece, last && data.end_stream)
    }

    /// Bytes of a stream's body, as they are handed on.
    #[inline]
    fn on_piece<'i>(&mut self, id: u32, piece: &'i [u8], end_stream: bool) -> Answer<'i> {
        // The application may have reset the stream since the frame began.
        let Some(stream) = self.streams.get(id) else {
            return Ok(None);
        };
        if !stream.expects(piece.len(), end_stream) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
        }
        if piece.is_empty() && !end_stream {
            self.charge(cost::EXPENSIVE)?;
            return Ok(None);
        }
        let event = Event::Data {
            stream: stream.id(),
            token: stream.token,
            data: piece,
            end_stream,
        };
        if end_stream {
            stream.recv = Half::Ended;
            if stream.is_over() {
                self.drop_stream(id, End::Known);
            }
        }
        self.abuse.control.earn();
        Ok(Some(event))
    }
}

/// How much of a frame's payload must have arrived before it is handled. DATA and unknown frames are
/// handled as they arrive, GOAWAY without its debug data.
#[inline]
fn at_once(head: &Head) -> usize {
    match head.kind {
        kind::DATA => 0,
        kind::GOAWAY => 8,
        kind::HEADERS..=kind::CONTINUATION => head.len as usize,
        _ => 0,
    }
}

/// Takes up to `len` bytes from the input.
#[inline]
pub(crate) fn take<'i>(input: &mut &'i [u8], len: u32) -> (&'i [u8], u32) {
    let whole = *input;
    match whole.split_at_checked(len as usize) {
        Some((taken, rest)) => {
            *input = rest;
            (taken, len)
        }
        None => {
            *input = &[];
            (whole, u32::try_from(whole.len()).unwrap_or(len))
        }
    }
}
