//! Frames of the peer → state changes → events (RFC 9113 §6), one function per frame type. Bytes
//! come in cut anywhere; DATA goes out as slices of them, header lists in the caller's
//! [`crate::Fields`]. An error here is of the connection; an error of one stream is answered with
//! RST_STREAM and told as an event. What the messages mean may not come in.

use std::time::Instant;

use crate::Fields;
use crate::abuse::SETTINGS_PER_FRAME;
use crate::connection::{Connection, DRAIN_PING, PROBE_PING};
use crate::error::{ConnectionError, ErrorCode, Initiator};
use crate::event::{Event, StreamId};
use crate::frame::{self, HEAD_BYTES, Head, flag, kind};
use crate::settings::HEADER_TABLE_SIZE;
use crate::stream::Half;
use crate::streams::End;

/// Where in the peer's bytes we are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    /// What is left of the client's preface.
    Preface(&'static [u8]),
    /// Before or inside a frame whose head has not been dealt with.
    Frame,
    /// Before the byte that says how much padding a DATA frame has.
    PadLength(Data),
    Data(Data),
    /// Bytes that nobody wants: padding, unknown frames, DATA of streams that are gone.
    Skip(u32),
}

/// A DATA frame under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data {
    stream: u32,
    left: u32,
    pad: u32,
    end_stream: bool,
}

/// A header block that came in more than one frame.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The head of its HEADERS frame, while it is under way.
    head: Option<Head>,
    bytes: Vec<u8>,
    frames: usize,
}

impl Block {
    pub(crate) fn shrink(&mut self) {
        if self.head.is_none() && self.bytes.capacity() > 0 {
            self.bytes = Vec::new();
        }
    }
}

/// Streams above the last id of the peer's GOAWAY, told one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    from: usize,
    last: u32,
}

type Answer<'i> = Result<Option<Event<'i>>, ConnectionError>;

/// Costs of frames that carry no message (see `abuse.rs`).
mod cost {
    pub(super) const ORDINARY: i32 = 1;
    /// Takes more work than others, or draws an answer.
    pub(super) const DEAR: i32 = 4;
}

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
        let error = match self.failed {
            Some(error) => error,
            None => {
                self.now = now;
                match self.read(input, fields) {
                    Ok(event) => return Ok(event),
                    Err(error) => {
                        self.fail(error);
                        error
                    }
                }
            }
        };
        *input = &[];
        Err(error)
    }

    fn read<'i>(&mut self, input: &mut &'i [u8], fields: &mut Fields) -> Answer<'i> {
        if self.sweep.is_some()
            && let Some(event) = self.sweep()
        {
            return Ok(Some(event));
        }
        loop {
            let event = match self.reading {
                Reading::Frame => match self.read_frame(input, fields)? {
                    Some(event) => event,
                    None => return Ok(None),
                },
                Reading::Data(data) => {
                    if data.left > 0 && input.is_empty() {
                        return Ok(None);
                    }
                    self.read_data(data, input)?
                }
                Reading::PadLength(data) => {
                    let Some((&pad, rest)) = input.split_first() else {
                        return Ok(None);
                    };
                    *input = rest;
                    self.read_pad_length(data, pad)?
                }
                Reading::Skip(left) => {
                    let n = take(input, left).1;
                    if n == left {
                        self.reading = Reading::Frame;
                    } else {
                        self.reading = Reading::Skip(left - n);
                        return Ok(None);
                    }
                    None
                }
                Reading::Preface(left) => {
                    if !self.read_preface(left, input)? {
                        return Ok(None);
                    }
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
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

    /// One frame: whole and straight from the input if it is there, else put together in
    /// `partial`. `None`: more bytes must come.
    fn read_frame<'i>(
        &mut self,
        input: &mut &'i [u8],
        fields: &mut Fields,
    ) -> Result<Option<Option<Event<'i>>>, ConnectionError> {
        if self.partial.is_empty()
            && let Some((bytes, rest)) = input.split_first_chunk::<HEAD_BYTES>()
        {
            let head = Head::parse(bytes);
            self.admit(&head)?;
            if let Some((payload, rest)) = rest.split_at_checked(at_once(&head)) {
                *input = rest;
                return self.on_frame(head, payload, input, fields).map(Some);
            }
        }
        if self.fill(input, HEAD_BYTES)
            && let Some(bytes) = self.partial.first_chunk::<HEAD_BYTES>()
        {
            let head = Head::parse(bytes);
            self.admit(&head)?;
            if self.fill(input, HEAD_BYTES + at_once(&head)) {
                let mut partial = std::mem::take(&mut self.partial);
                let payload = partial.get(HEAD_BYTES..).unwrap_or_default();
                let event = self.on_frame(head, payload, input, fields)?;
                partial.clear();
                self.partial = partial;
                if self.block.head.is_none() {
                    self.incomplete_since = None;
                }
                return Ok(Some(event));
            }
        }
        if !self.partial.is_empty() || self.block.head.is_some() {
            self.incomplete_since.get_or_insert(self.now);
        }
        Ok(None)
    }

    /// Brings `partial` to `len` bytes, if there are so many.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        let n = len.saturating_sub(self.partial.len()).min(input.len());
        let (came, rest) = input.split_at(n);
        self.partial.extend_from_slice(came);
        *input = rest;
        self.partial.len() >= len
    }

    /// Whether a frame may come now at all, judged by its head before a byte of it is kept.
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
                    "CONTINUATION without a header block under way",
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
            kind::DATA => self.on_data(&head),
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

    fn skip(&mut self, bytes: u32) {
        self.reading = match bytes {
            0 => Reading::Frame,
            _ => Reading::Skip(bytes),
        };
    }

    /// The head of a DATA frame (§6.1): both windows are charged with the whole frame, padding
    /// included, whether or not anybody wants it.
    fn on_data<'i>(&mut self, head: &Head) -> Answer<'i> {
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
        self.skip(len);
        let Some(stream) = self.streams.get(id) else {
            self.not_idle(id)?;
            return self.on_closed(id);
        };
        match stream.recv {
            Half::Body => {}
            Half::Headers => return self.stream_error(id, ErrorCode::PROTOCOL_ERROR),
            Half::Closing | Half::Ended => {
                return self.stream_error(id, ErrorCode::STREAM_CLOSED);
            }
        }
        if !stream.recv_window.take(len) {
            return self.stream_error(id, ErrorCode::FLOW_CONTROL_ERROR);
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
        let end_stream = last && data.end_stream;
        // The shell may have reset the stream since the frame began.
        let Some(stream) = self.streams.get(data.stream) else {
            return Ok(None);
        };
        if !stream.expects(piece.len(), end_stream) {
            return self.stream_error(data.stream, ErrorCode::PROTOCOL_ERROR);
        }
        if piece.is_empty() && !end_stream {
            self.charge(cost::DEAR)?;
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
                self.drop_stream(data.stream, End::Known);
            }
        }
        self.abuse.control.earn();
        Ok(Some(event))
    }

    /// HEADERS (§6.2).
    fn on_headers<'i>(&mut self, head: Head, payload: &[u8], fields: &mut Fields) -> Answer<'i> {
        let block = frame::header_block(&head, payload)?;
        if head.has(flag::END_HEADERS) {
            return self.on_block(head, block, fields);
        }
        self.block.bytes.clear();
        self.block.bytes.extend_from_slice(block);
        self.block.head = Some(head);
        self.block.frames = 0;
        Ok(None)
    }

    /// CONTINUATION (§6.10), bounded by count and by bytes; `on_deadline` bounds it by time.
    fn on_continuation<'i>(
        &mut self,
        head: &Head,
        payload: &[u8],
        fields: &mut Fields,
    ) -> Answer<'i> {
        // A block that HPACK would still decode to the end (4 times the list's bound), in frames of
        // the least size that a peer must take, and as many again for peers that cut smaller.
        let max_bytes = self.config.header_list_bytes.saturating_mul(4);
        let max_frames = 8 + 2 * max_bytes / (1 << 14);
        self.block.frames += 1;
        if self.block.frames > max_frames || self.block.bytes.len() + payload.len() > max_bytes {
            return Err(ConnectionError::calm("header block is too long"));
        }
        self.block.bytes.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(None);
        }
        self.incomplete_since = None;
        let Some(first) = self.block.head.take() else {
            return Ok(None);
        };
        let block = std::mem::take(&mut self.block.bytes);
        let event = self.on_block(first, &block, fields);
        self.block.bytes = block;
        event
    }

    /// WINDOW_UPDATE (§6.9).
    fn on_window_update<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        self.charge(cost::ORDINARY)?;
        let increment = frame::number(payload) & frame::MAX_31;
        let id = head.stream;
        if id == 0 {
            if increment == 0 {
                return Err(ConnectionError::protocol("WINDOW_UPDATE of 0"));
            }
            if self.send_window.give(increment).is_err() {
                return Err(ConnectionError::flow_control(
                    "the connection's window would pass 2^31-1",
                ));
            }
            self.pump();
            return Ok(None);
        }
        let Some(slot) = self.streams.slot(id) else {
            // Late ones are legal (§5.1).
            self.not_idle(id)?;
            return Ok(None);
        };
        if increment == 0 {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.at(slot) else {
            return Ok(None);
        };
        if stream.send_window.give(increment).is_err() {
            return self.stream_error(id, ErrorCode::FLOW_CONTROL_ERROR);
        }
        if stream.pending.is_some() {
            self.unblock(slot);
        }
        Ok(None)
    }

    /// RST_STREAM (§6.4).
    fn on_reset<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        let id = head.stream;
        self.not_idle(id)?;
        self.counters.resets_received += 1;
        let code = ErrorCode(frame::number(payload));
        // A server can only reset what we opened; a client may open and reset for ever.
        if self.is_server && !self.abuse.resets.take(1, self.now) {
            return Err(ConnectionError::calm("too many RST_STREAM frames"));
        }
        let Some(stream) = self.drop_stream(id, End::Known) else {
            self.charge(cost::ORDINARY)?;
            return Ok(None);
        };
        Ok(Some(Event::Reset {
            stream: stream.id(),
            token: stream.token,
            code,
            unprocessed: code == ErrorCode::REFUSED_STREAM,
            by: Initiator::Remote,
        }))
    }

    /// SETTINGS (§6.5), all of it or, on an error, none.
    fn on_settings<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        if head.has(flag::ACK) {
            self.on_settings_ack();
            return Ok(None);
        }
        if head.len / 6 > SETTINGS_PER_FRAME {
            return Err(ConnectionError::calm("too many parameters in SETTINGS"));
        }
        self.charge(cost::DEAR)?;
        let mut peer = self.peer.clone();
        peer.first();
        for (id, value) in frame::settings(payload) {
            peer.set(id, value, !self.is_server)?;
        }
        // Each value counts for the encoder: it must tell of the smallest (RFC 7541 §4.2).
        for (_, size) in frame::settings(payload).filter(|(id, _)| *id == HEADER_TABLE_SIZE) {
            self.encoder.set_peer_table_size(size);
        }
        let by = i64::from(peer.initial_window) - i64::from(self.peer.initial_window);
        self.peer = peer;
        self.shift_windows(by)?;
        // Before any frame that the new settings make possible.
        self.output.settings_ack();
        self.bound_control()?;
        if by > 0 && self.pending_bytes > 0 {
            self.unblock_all();
        }
        Ok(Some(Event::Settings))
    }

    /// A new SETTINGS_INITIAL_WINDOW_SIZE moves the windows of all streams (§6.9.2).
    fn shift_windows(&mut self, by: i64) -> Result<(), ConnectionError> {
        if by == 0 {
            return Ok(());
        }
        for stream in self.streams.iter_mut() {
            if stream.send_window.shift(by).is_err() {
                return Err(ConnectionError::flow_control(
                    "SETTINGS_INITIAL_WINDOW_SIZE brings a stream's window over 2^31-1",
                ));
            }
        }
        Ok(())
    }

    /// The peer knows our settings: a smaller window than the default holds from now on.
    fn on_settings_ack(&mut self) {
        if self.settings_sent.take().is_none() {
            return;
        }
        let by = self.initial_recv.saturating_sub(self.config.stream_window);
        self.initial_recv = self.config.stream_window;
        if by == 0 {
            return;
        }
        let target = self.targets.stream;
        for stream in self.streams.iter_mut() {
            stream.recv_window.lower(by);
            // What was released before may be all there is: nothing else would ask again.
            if let Some(increment) = stream.recv_window.release(0, target)
                && stream.recv < Half::Ended
            {
                self.output.window_update(stream.id, increment);
            }
        }
    }

    /// PING (§6.7).
    fn on_ping<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        if !head.has(flag::ACK) {
            self.counters.pings_received += 1;
            self.charge(cost::ORDINARY)?;
            self.output.ping_ack(payload);
            self.bound_control()?;
            return Ok(None);
        }
        let Some(&payload) = payload.first_chunk::<8>() else {
            return Ok(None);
        };
        if payload == PROBE_PING {
            if let Some(grown) = self.probe.finish(&self.targets, self.now)
                && self.config.grow_windows
            {
                self.targets.stream = grown.stream_target;
                self.targets.connection = grown.connection_target;
                self.counters.window_growths += 1;
            }
        } else if payload == DRAIN_PING {
            self.finish_drain();
        } else if self.shell_ping == Some(payload) {
            self.shell_ping = None;
            return Ok(Some(Event::PingAck(payload)));
        } else {
            self.charge(cost::ORDINARY)?;
        }
        Ok(None)
    }

    /// GOAWAY (§6.8). The fixed part is the payload here; debug data is what lies in the input.
    fn on_goaway<'i>(
        &mut self,
        head: &Head,
        payload: &[u8],
        input: &mut &'i [u8],
    ) -> Result<Event<'i>, ConnectionError> {
        let last = frame::number(payload) & frame::MAX_31;
        let code = ErrorCode(frame::number(payload.get(4..).unwrap_or_default()));
        if self.goaway_received.is_some_and(|before| last > before) {
            return Err(ConnectionError::protocol(
                "GOAWAY raised its last stream id",
            ));
        }
        self.charge(cost::DEAR)?;
        self.goaway_received = Some(last);
        let len = head.len.saturating_sub(8);
        let (debug, n) = take(input, len);
        self.skip(len - n);
        // A client's GOAWAY counts pushed streams; those that it opened go on.
        if !self.is_server {
            self.sweep = Some(Sweep { from: 0, last });
        }
        Ok(Event::GoAway { code, debug })
    }

    /// The next stream that the peer's GOAWAY says it will not act on.
    fn sweep<'i>(&mut self) -> Option<Event<'i>> {
        let sweep = self.sweep?;
        let Some((id, next)) = self.streams.scan(sweep.from, sweep.last) else {
            self.sweep = None;
            return None;
        };
        self.sweep = Some(Sweep {
            from: next,
            ..sweep
        });
        let stream = self.drop_stream(id, End::ResetByUs)?;
        Some(Event::Reset {
            stream: stream.id(),
            token: stream.token,
            code: ErrorCode::REFUSED_STREAM,
            unprocessed: true,
            by: Initiator::Remote,
        })
    }

    /// PRIORITY (§6.3): parsed and ignored.
    fn on_priority<'i>(&mut self, head: &Head) -> Answer<'i> {
        self.charge(cost::ORDINARY)?;
        if head.len == 5 {
            return Ok(None);
        }
        match self.streams.slot(head.stream) {
            Some(_) => self.stream_error(head.stream, ErrorCode::FRAME_SIZE_ERROR),
            // No stream to reset: an idle one may not be, a closed one is past it.
            None => Err(ConnectionError::frame_size("PRIORITY is not 5 bytes long")),
        }
    }

    /// Whether a stream has ever been opened; frames on others are errors of the connection (§5.1).
    pub(crate) fn not_idle(&self, id: u32) -> Result<(), ConnectionError> {
        let used = match self.is_server {
            true => id <= self.last_id,
            false => id < self.next_id,
        };
        if used && !id.is_multiple_of(2) {
            return Ok(());
        }
        Err(ConnectionError::protocol("frame on an idle stream"))
    }

    /// DATA on a stream that is closed (§5.1). Late DATA of streams that we reset is no fault, and
    /// of those that ended long ago nobody knows who ended them.
    fn on_closed<'i>(&mut self, id: u32) -> Answer<'i> {
        let after_goaway = self.is_server && self.goaway_sent.is_some_and(|last| id > last);
        match self.streams.ended(id) {
            _ if after_goaway => Ok(None),
            Some(End::ResetByUs) => Ok(None),
            Some(End::Known) => self.stream_error(id, ErrorCode::STREAM_CLOSED),
            None => self.charge(cost::ORDINARY).map(|()| None),
        }
    }

    /// An error of the peer's on one stream (§5.4.2): RST_STREAM, and the event if the stream had
    /// been announced.
    pub(crate) fn stream_error<'i>(&mut self, id: u32, code: ErrorCode) -> Answer<'i> {
        self.counters.stream_errors += 1;
        if !self.abuse.provoked.take(1, self.now) {
            return Err(ConnectionError::calm("too many stream errors"));
        }
        self.answer_reset(id, code)?;
        let Some(stream) = self.drop_stream(id, End::ResetByUs) else {
            self.streams.remember(id, End::ResetByUs);
            return Ok(None);
        };
        Ok(Some(Event::Reset {
            stream: stream.id(),
            token: stream.token,
            code,
            unprocessed: false,
            by: Initiator::Local,
        }))
    }

    pub(crate) fn answer_reset(&mut self, id: u32, code: ErrorCode) -> Result<(), ConnectionError> {
        self.output.provoked_reset(id, code);
        self.counters.resets_sent += 1;
        self.bound_control()
    }

    /// Pays for a frame that carries no message.
    #[inline]
    pub(crate) fn charge(&mut self, cost: i32) -> Result<(), ConnectionError> {
        match self.abuse.control.take(cost, self.now) {
            true => Ok(()),
            false => Err(ConnectionError::calm("too many control frames")),
        }
    }

    /// The peer draws answers and does not read them.
    fn bound_control(&self) -> Result<(), ConnectionError> {
        match self.output.unread_control() > self.config.control_queue {
            true => Err(ConnectionError::calm("answers are not read")),
            false => Ok(()),
        }
    }
}

/// How much of a frame's payload must be there before it is dealt with. DATA and unknown frames
/// are dealt with as they come, GOAWAY up to its debug data.
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
fn take<'i>(input: &mut &'i [u8], len: u32) -> (&'i [u8], u32) {
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
