//! HEADERS and CONTINUATION frames → requests, responses and trailers (RFC 9113 §6.2, §6.10, §8.1),
//! by the state of their stream. Every block is decoded, even of a stream that is gone, because the
//! HPACK tables would diverge otherwise. Only the validity of a list matters here, not its meaning.

use crate::Fields;
use crate::connection::Connection;
use crate::error::{ConnectionError, ErrorCode};
use crate::event::{Event, Kind, StreamId};
use crate::frame::{self, Head, flag};
use crate::headers;
use crate::hpack::{HpackError, Limits, Outcome, Parts};
use crate::recv::Answer;
use crate::stream::{Half, Stream};
use crate::streams::End;

/// A header block that came in more than one frame.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The head of its HEADERS frame, while the block is incomplete.
    pub(crate) head: Option<Head>,
    /// What has not been decoded.
    bytes: Vec<u8>,
    /// What has been decoded, of a large block.
    parts: Option<Box<Parts>>,
    /// With this many bytes the next part is decoded.
    decode_at: usize,
    /// Its length so far.
    total: usize,
    frames: usize,
}

impl Block {
    /// The memory of an incomplete block.
    pub(crate) fn len(&self) -> usize {
        let parts = self.parts.as_ref().map_or(0, |parts| parts.held_bytes());
        match self.head {
            Some(_) => self.bytes.len() + parts,
            None => 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn shrink(&mut self) {
        if self.head.is_none() && self.bytes.capacity() > 0 {
            self.bytes = Vec::new();
        }
    }

    fn begin(&mut self, head: Head, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.head = Some(head);
        self.parts = None;
        self.decode_at = PART_BYTES;
        self.total = bytes.len();
        self.frames = 0;
    }

    /// Adds a CONTINUATION frame; false if the block is too long.
    fn push(&mut self, bytes: &[u8], max_bytes: usize) -> bool {
        // In frames of the smallest maximum size, and as many again for peers that send smaller ones.
        let max_frames = 8 + 2 * max_bytes / (1 << 14);
        self.frames += 1;
        self.total += bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.frames <= max_frames && self.total <= max_bytes
    }
}

/// A block with this many bytes is decoded as it arrives. A field that is incomplete then is looked at
/// again when as many more have come: each byte is read a few times at most.
const PART_BYTES: usize = 64 * 1024;
/// A buffer for split blocks that is larger than this is released after use.
const KEPT_BLOCK_BYTES: usize = 64 * 1024;
/// A block as it was decoded.
#[derive(Clone, Copy)]
struct Decoded<'f> {
    fields: &'f Fields,
    end_stream: bool,
    too_large: bool,
}

impl Connection {
    /// HEADERS (§6.2).
    pub(crate) fn on_headers<'i>(
        &mut self,
        head: Head,
        payload: &[u8],
        fields: &mut Fields,
    ) -> Answer<'i> {
        let block = frame::header_block(&head, payload)?;
        if head.has(flag::END_HEADERS) {
            return self.on_block(head, block, fields);
        }
        self.block.begin(head, block);
        Ok(None)
    }

    /// CONTINUATION (§6.10), limited in count and bytes; `on_deadline` limits its time.
    pub(crate) fn on_continuation<'i>(
        &mut self,
        head: &Head,
        payload: &[u8],
        fields: &mut Fields,
    ) -> Answer<'i> {
        if !self.block.push(payload, self.config.header_block_bytes) {
            return Err(ConnectionError::enhance_your_calm(
                "header block is too long",
            ));
        }
        if !head.has(flag::END_HEADERS) {
            if self.block.bytes.len() >= self.block.decode_at {
                self.decode_part()?;
            }
            return Ok(None);
        }
        self.incomplete_since = None;
        let Some(first) = self.block.head.take() else {
            return Ok(None);
        };
        let block = std::mem::take(&mut self.block.bytes);
        let event = match self.block.parts.take() {
            None => self.on_block(first, &block, fields),
            Some(parts) => {
                let limits = self.limits();
                let outcome = self.decoder.decode_last(*parts, &block, limits, fields);
                self.on_list(first, outcome, fields)
            }
        };
        if block.capacity() <= KEPT_BLOCK_BYTES {
            self.block.bytes = block;
        }
        event
    }

    /// Decodes what has arrived of a large block.
    #[cold]
    fn decode_part(&mut self) -> Result<(), ConnectionError> {
        let (limits, block) = (self.limits(), &mut self.block);
        let parts = block.parts.get_or_insert_default();
        let used = self.decoder.decode_part(parts, &block.bytes, limits);
        match used {
            Ok(used) => {
                block.bytes.drain(..used);
                block.decode_at = block.bytes.len() + PART_BYTES;
                Ok(())
            }
            Err(error) => {
                let stream = block.head.as_ref().map_or(0, |head| head.stream);
                Err(self.undecodable(stream, error))
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            list_bytes: self.config.header_list_bytes,
            fields: self.config.header_fields,
            discarded_bytes: self.config.header_block_bytes,
        }
    }

    /// The connection's error after a block of a stream that cannot be decoded.
    #[cold]
    fn undecodable(&mut self, stream: u32, error: HpackError) -> ConnectionError {
        if self.is_server && !stream.is_multiple_of(2) {
            // The GOAWAY must cover the stream that caused the error, or the client sends it again.
            self.last_id = self.last_id.max(stream);
        }
        match error {
            HpackError::ListTooLarge => ConnectionError::enhance_your_calm(
                "header list is too large to be decoded and discarded",
            ),
            _ => ConnectionError::new(
                ErrorCode::COMPRESSION_ERROR,
                "header block cannot be decoded",
            ),
        }
    }

    /// A complete header block; `head` is that of its HEADERS frame.
    #[inline]
    fn on_block<'i>(&mut self, head: Head, block: &[u8], fields: &mut Fields) -> Answer<'i> {
        fields.clear();
        let outcome = self.decoder.decode(block, self.limits(), fields);
        self.on_list(head, outcome, fields)
    }

    /// A header list as it was decoded. Inlined into the way of lists that come whole.
    #[inline(always)]
    fn on_list<'i>(
        &mut self,
        head: Head,
        outcome: Result<Outcome, HpackError>,
        fields: &Fields,
    ) -> Answer<'i> {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return Err(self.undecodable(head.stream, error)),
        };
        let decoded = Decoded {
            fields,
            end_stream: head.has(flag::END_STREAM),
            too_large: outcome == Outcome::TooLarge,
        };
        if decoded.too_large {
            self.counters.too_large += 1;
        }
        match self.streams.get(head.stream).map(|stream| stream.recv) {
            None if self.is_server => self.on_new(head.stream, decoded),
            None => self.on_unwanted(head.stream),
            Some(Half::Headers) => self.on_response(head.stream, decoded),
            Some(Half::Body) => self.on_trailers(head.stream, decoded),
            Some(Half::Closing | Half::Ended) => {
                self.stream_error(head.stream, ErrorCode::STREAM_CLOSED)
            }
        }
    }

    /// A block on a stream that the server does not have: a new request, if its id allows.
    fn on_new<'i>(&mut self, id: u32, decoded: Decoded<'_>) -> Answer<'i> {
        if id.is_multiple_of(2) {
            return Err(ConnectionError::protocol("a client's stream id is even"));
        }
        if id <= self.last_id {
            return match self.streams.ended(id) {
                Some(End::ResetByUs) => Ok(None),
                Some(End::Known) => Err(ConnectionError::new(
                    ErrorCode::STREAM_CLOSED,
                    "HEADERS on a closed stream",
                )),
                None => Err(ConnectionError::protocol("stream id is not above the last")),
            };
        }
        // The id is used up, whatever becomes of the stream (§5.1.1).
        self.last_id = id;
        if self.goaway_sent.is_some_and(|last| id > last) {
            return Ok(None);
        }
        // A stream whose response is not written is live: a client that does not read gets no more.
        if self.streams.live() >= self.config.max_concurrent_streams as usize {
            return self.refuse(id);
        }
        let mut stream = Stream::new(id, 0, self.peer.initial_window, self.initial_recv);
        stream.recv = Half::Body;
        stream.opened_ms = self.clock_ms();
        if !decoded.too_large {
            match headers::request(decoded.fields, self.config.enable_connect_protocol) {
                Ok(request) => stream.expect = request.content_length,
                Err(_) => return self.stream_error(id, ErrorCode::PROTOCOL_ERROR),
            }
        }
        if decoded.end_stream {
            stream.recv = Half::Ended;
            if !stream.expects(0, true) {
                return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
            }
        }
        self.streams.insert(stream);
        self.counters.streams += 1;
        self.abuse.control.earn();
        Ok(Some(announce(id, 0, Kind::Request, decoded)))
    }

    /// Over MAX_CONCURRENT_STREAMS (§5.1.2). Many are a flood like resets.
    fn refuse<'i>(&mut self, id: u32) -> Answer<'i> {
        self.counters.refused += 1;
        if !self.abuse.resets.refused(self.now) {
            return Err(ConnectionError::enhance_your_calm(
                "too many streams over the limit",
            ));
        }
        self.answer_reset(id, ErrorCode::REFUSED_STREAM)?;
        self.streams.remember(id, End::ResetByUs);
        Ok(None)
    }

    /// A block on a stream that the client does not have: late, or an error.
    fn on_unwanted<'i>(&mut self, id: u32) -> Answer<'i> {
        self.not_idle(id)?;
        // The connection is shared by many calls: a stray block must not end them.
        if self.streams.ended(id) != Some(End::ResetByUs) {
            self.charge(1)?;
        }
        Ok(None)
    }

    /// The client waits for a response: this is one, or a 1xx before it.
    fn on_response<'i>(&mut self, id: u32, decoded: Decoded<'_>) -> Answer<'i> {
        let (status, length) = match headers::response(decoded.fields) {
            // What is missing of a list that is too large may be a length, too.
            Ok(response) if decoded.too_large => (Some(response.status), None),
            Ok(response) => (Some(response.status), response.content_length),
            Err(_) => (None, None),
        };
        let Some(status) = status else {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
        };
        let Some(stream) = self.streams.get(id) else {
            return Ok(None);
        };
        let token = stream.token;
        if status < 200 {
            // A 1xx does not end a stream (§8.1), and 101 has no meaning here (§8.6).
            if decoded.end_stream || status == 101 {
                return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
            }
            self.charge(1)?;
            return Ok(Some(announce(id, token, Kind::Informational, decoded)));
        }
        self.abuse.control.earn();
        stream.recv = Half::Body;
        if !stream.head && status != 204 && status != 304 {
            stream.expect = length;
        }
        if decoded.end_stream && !stream.expects(0, true) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
        }
        if decoded.end_stream {
            stream.recv = Half::Ended;
            if stream.is_over() {
                self.drop_stream(id, End::Known);
            }
        }
        Ok(Some(announce(id, token, Kind::Response, decoded)))
    }

    /// A second list on a stream: trailers, which must end it (§8.1).
    fn on_trailers<'i>(&mut self, id: u32, decoded: Decoded<'_>) -> Answer<'i> {
        let valid = headers::trailers(decoded.fields).is_ok();
        let Some(stream) = self.streams.get(id) else {
            return Ok(None);
        };
        if !decoded.end_stream || !valid || !stream.expects(0, true) {
            return self.stream_error(id, ErrorCode::PROTOCOL_ERROR);
        }
        self.abuse.control.earn();
        stream.recv = Half::Ended;
        let token = stream.token;
        if stream.is_over() {
            self.drop_stream(id, End::Known);
        }
        Ok(Some(announce(id, token, Kind::Trailers, decoded)))
    }
}

fn announce<'i>(id: u32, token: u64, kind: Kind, decoded: Decoded<'_>) -> Event<'i> {
    let (stream, end_stream) = (StreamId(id), decoded.end_stream);
    if decoded.too_large {
        Event::TooLarge {
            stream,
            token,
            kind,
            end_stream,
        }
    } else {
        Event::Headers {
            stream,
            token,
            kind,
            end_stream,
        }
    }
}
