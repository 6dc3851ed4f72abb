//! The application's commands → frames (RFC 9113 §6, §8.1). What cannot be written now waits in its
//! stream (`queue.rs`). No input of the peer.

use crate::Fields;
use crate::connection::Connection;
use crate::error::{ErrorCode, Gone, OpenError};
use crate::event::{StreamId, Token};
use crate::frame::MAX_31;
use crate::stream::{Half, Stream, Then};
use crate::streams::{End, Slot};

/// The largest DATA frame that we send, even if the peer accepts larger ones: what one stream may
/// write before the next one.
const TURN_BYTES: usize = 64 * 1024;

impl Connection {
    /// Opens a stream with a request (client).
    pub fn open(
        &mut self,
        fields: &Fields,
        token: Token,
        end_stream: bool,
    ) -> Result<StreamId, OpenError> {
        if self.is_draining() || self.is_server {
            return Err(OpenError::Draining);
        }
        let id = self.next_id;
        if id > MAX_31 {
            return Err(OpenError::IdsExhausted);
        }
        if self.open_slots() == 0 {
            return Err(OpenError::Full);
        }
        self.next_id += 2;
        self.counters.streams += 1;
        let mut stream = Stream::new(id, token, self.peer.initial_window, self.initial_recv);
        stream.head = fields.method() == Some(b"HEAD");
        let now = self.has_output_room();
        stream.send = match end_stream {
            true if now => Half::Ended,
            true => Half::Closing,
            false => Half::Body,
        };
        self.streams.insert(stream);
        match now {
            true => self.write_headers(id, fields, end_stream),
            false => {
                self.queue_list(id, |pending| pending.set_head(fields, end_stream));
            }
        }
        Ok(StreamId(id))
    }

    /// Whether a header list would be written now. While more output than the high water is unread,
    /// lists wait in their streams as DATA does, because nothing else limits their encoded size.
    /// Lists that wait already are written first.
    #[inline]
    pub fn has_output_room(&self) -> bool {
        self.output.len() < self.high_water && !self.streams.any_list_ready()
    }

    /// Sends a response, a 1xx response, or trailers: the first list that is not 1xx is the
    /// response (server), a later one trailers, which end our half whatever `end_stream` says and
    /// wait behind queued DATA. Returns the memory of the list while it waits, 0 if it went into the
    /// output; [`Connection::poll_drained`] reports when it is written. While much output is unread,
    /// 1xx responses are dropped.
    pub fn headers(
        &mut self,
        stream: StreamId,
        fields: &Fields,
        end_stream: bool,
    ) -> Result<usize, Gone> {
        let now = self.has_output_room();
        let stream = self.streams.get(stream.0).ok_or(Gone)?;
        let id = stream.id;
        match stream.send {
            Half::Headers => {
                if fields.status().is_some_and(|status| status < 200) {
                    if now {
                        self.write_headers(id, fields, false);
                    }
                    return Ok(0);
                }
                if !now {
                    stream.send = match end_stream {
                        true => Half::Closing,
                        false => Half::Body,
                    };
                    return Ok(self.queue_list(id, |pending| pending.set_head(fields, end_stream)));
                }
                stream.send = match end_stream {
                    true => Half::Ended,
                    false => Half::Body,
                };
                let over = stream.is_over();
                self.write_headers(id, fields, end_stream);
                if over {
                    self.drop_stream(id, End::Known);
                }
            }
            Half::Body if stream.pending.is_some() || !now => {
                stream.send = Half::Closing;
                return Ok(self.queue_list(id, |pending| pending.set_trailers(fields)));
            }
            Half::Body => {
                stream.send = Half::Ended;
                let over = stream.is_over();
                self.write_trailers(id, fields);
                if over {
                    self.drop_stream(id, End::Known);
                }
            }
            Half::Closing | Half::Ended => return Err(Gone),
        }
        Ok(0)
    }

    /// Sends DATA. All of it is accepted; returns how many bytes went into the output now. The rest is
    /// queued and reported by [`Connection::poll_drained`]. The application bounds the queue: it
    /// releases at the source only what was written here, so at most a window can wait.
    pub fn data(&mut self, stream: StreamId, data: &[u8], end_stream: bool) -> Result<usize, Gone> {
        let (max, high_water) = (self.largest_data_frame(), self.high_water);
        let slot = self.streams.slot(stream.0).ok_or(Gone)?;
        let stream = self.streams.at(slot).ok_or(Gone)?;
        if stream.send != Half::Body {
            return Err(Gone);
        }
        // Nearly always all of it fits into one frame.
        let room = stream.send_window.available();
        let room = room.min(self.send_window.available()).min(max);
        let (len, queued) = (data.len(), stream.pending.is_some());
        if (1..=room).contains(&len) && !queued && self.output.len() < high_water {
            stream.send_window.take(len);
            if end_stream {
                stream.send = Half::Ended;
            }
            let (id, over) = (stream.id, stream.is_over());
            self.send_window.take(len);
            self.output.data(id, data, end_stream);
            self.abuse.control.earn();
            if over {
                self.drop_stream(id, End::Known);
            }
            return Ok(len);
        }
        if end_stream {
            stream.send = Half::Closing;
        }
        let then = match end_stream {
            true => Then::End,
            false => Then::Nothing,
        };
        if let Some(pending) = stream.pending.as_mut() {
            pending.push(data);
            pending.then = then;
            self.pending_bytes += data.len();
            self.streams.update_ready(slot);
            return Ok(0);
        }
        let sent = self.write_data(slot, data, end_stream);
        match data.get(sent..) {
            Some(rest @ [_, ..]) => self.queue(slot, rest, then),
            _ if end_stream => self.end_send(slot),
            _ => {}
        }
        Ok(sent)
    }

    /// Received DATA was forwarded: the peer may send as much again on this stream. Streams that are
    /// gone are ignored: the connection's window was credited on receipt.
    #[inline]
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get(stream.0) else {
            return;
        };
        let Some(increment) = stream.recv_window.release(bytes, self.targets.stream) else {
            return;
        };
        if stream.recv >= Half::Ended {
            return;
        }
        let id = stream.id;
        self.output.window_update(id, increment);
        let grows = self.config.grow_windows && !self.config.low_memory;
        if grows && self.probe.start(id, &self.targets, self.now) {
            self.output.ping(crate::connection::PROBE_PING);
        }
    }

    /// Ends a stream with RST_STREAM, which is sent before queued data, except NO_ERROR ("the rest of
    /// your request is not needed", §8.1), which waits behind it. Without effect on a stream that is
    /// over. A stream whose request is still queued is dropped without any frame.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        let Some(stream) = self.streams.get(stream.0) else {
            return;
        };
        let id = stream.id;
        if code == ErrorCode::NO_ERROR && stream.pending.is_some() {
            stream.reset = Some(code);
            if stream.send == Half::Body {
                stream.send = Half::Closing;
            }
            return;
        }
        let unsent = !self.is_server && stream.pending.as_ref().is_some_and(|p| p.has_head());
        if unsent {
            self.drop_stream(id, End::ResetByUs);
            return;
        }
        self.write_reset(id, code);
    }

    /// Gives a stream the application's handle, which comes back in every event.
    pub fn set_token(&mut self, stream: StreamId, token: Token) {
        if let Some(stream) = self.streams.get(stream.0) {
            stream.token = token;
        }
    }

    /// Writes as much as windows and output allow now.
    #[inline]
    fn write_data(&mut self, slot: Slot, data: &[u8], end_stream: bool) -> usize {
        let max = self.largest_data_frame();
        let high_water = self.high_water;
        let connection = self.send_window.available();
        let Some(stream) = self.streams.at(slot) else {
            return 0;
        };
        if data.is_empty() {
            if end_stream {
                self.output.data(stream.id, &[], true);
            }
            return 0;
        }
        let room = stream.send_window.available().min(connection);
        let mut sent = 0;
        while sent < data.len() && sent < room && self.output.len() < high_water {
            let n = (data.len() - sent).min(max).min(room - sent);
            let last = sent + n == data.len();
            let frame = data.get(sent..sent + n).unwrap_or_default();
            self.output.data(stream.id, frame, last && end_stream);
            sent += n;
        }
        stream.send_window.take(sent);
        self.send_window.take(sent);
        self.abuse.control.earn();
        sent
    }

    /// END_STREAM went out with DATA.
    fn end_send(&mut self, slot: Slot) {
        if let Some(stream) = self.streams.at(slot) {
            stream.send = Half::Ended;
            if stream.is_over() {
                let id = stream.id;
                self.drop_stream(id, End::Known);
            }
        }
    }

    pub(crate) fn largest_data_frame(&self) -> usize {
        usize::try_from(self.peer.max_frame_size).map_or(TURN_BYTES, |max| max.min(TURN_BYTES))
    }

    pub(crate) fn write_headers(&mut self, id: u32, fields: &Fields, end_stream: bool) {
        let encoder = &mut self.encoder;
        self.output
            .headers(id, end_stream, self.peer.max_frame_size, |out| {
                encoder.encode(fields, out);
            });
        self.abuse.control.earn();
    }

    /// Trailers end the stream. An empty list would be an empty block, which some peers reject; an
    /// empty DATA frame means the same.
    pub(crate) fn write_trailers(&mut self, id: u32, fields: &Fields) {
        if fields.is_empty() {
            self.output.data(id, &[], true);
        } else {
            self.write_headers(id, fields, true);
        }
    }

    pub(crate) fn write_reset(&mut self, id: u32, code: ErrorCode) {
        self.output.reset(id, code);
        self.counters.resets_sent += 1;
        self.drop_stream(id, End::ResetByUs);
    }
}
