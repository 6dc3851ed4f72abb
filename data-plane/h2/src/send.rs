//! The application's commands → frames (RFC 9113 §6, §8.1), and the order in which streams write:
//! within both windows and the space in the output, one stream after the other. What cannot be
//! written now is queued in its stream and reported when it is written. No input of the peer.

use crate::Fields;
use crate::connection::Connection;
use crate::error::{ErrorCode, Gone, OpenError};
use crate::event::{Drained, StreamId, Token};
use crate::frame::MAX_31;
use crate::stream::{Half, Pending, Stream, Then};
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

    /// Keeps a header list in its stream until there is space in the output.
    #[cold]
    fn queue_list(&mut self, id: u32, put: impl FnOnce(&mut Pending) -> usize) -> usize {
        let Some(slot) = self.streams.slot(id) else {
            return 0;
        };
        let Some(stream) = self.streams.at(slot) else {
            return 0;
        };
        let pool = &mut self.pool;
        let pending = stream
            .pending
            .get_or_insert_with(|| pool.pop().unwrap_or_default());
        let bytes = put(pending);
        self.pending_bytes += bytes;
        self.streams.update_ready(slot);
        bytes
    }

    /// Drops queued DATA of a stream, so that trailers need not wait behind it; returns the number of
    /// bytes. A stream whose end is queued is left unchanged.
    pub fn discard(&mut self, stream: StreamId) -> usize {
        let Some(slot) = self.streams.slot(stream.0) else {
            return 0;
        };
        let Some(stream) = self.streams.at(slot) else {
            return 0;
        };
        let (Half::Body, Some(pending)) = (stream.send, stream.pending.as_mut()) else {
            return 0;
        };
        let discarded = pending.discard();
        // An empty queue would have trailers wait for nothing.
        let empty = !pending.has_head() && stream.reset.is_none();
        let empty = stream.pending.take_if(|_| empty);
        self.pending_bytes = self.pending_bytes.saturating_sub(discarded);
        self.streams.update_ready(slot);
        if let Some(pending) = empty {
            self.give_back(pending);
        }
        discarded
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
        let grows = self.config.grow_windows && !self.config.frugal;
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

    /// The next report of queued DATA and header lists that went into the output. Call after `recv` and
    /// after `advance`, until `None`.
    #[inline]
    pub fn poll_drained(&mut self) -> Option<Drained> {
        let report = self.reports.pop_front()?;
        self.reports_taken += 1;
        Some(report)
    }

    /// Moves queued data into the output while there is space, DATA while the connection's window is
    /// open. Each stream in the rings writes one list or frame in turn.
    pub(crate) fn pump(&mut self) {
        while self.output.len() < self.high_water {
            let window = self.send_window.available() > 0;
            let Some(slot) = self.streams.next_ready(window) else {
                return;
            };
            self.pump_one(slot);
        }
    }

    /// One list or one frame of what a stream has queued.
    fn pump_one(&mut self, slot: Slot) {
        let Some(stream) = self.streams.at(slot) else {
            return;
        };
        match &stream.pending {
            Some(pending) if pending.has_head() => self.pump_head(slot),
            Some(pending) if pending.len() > 0 => self.pump_data(slot),
            _ => self.finish_queue(slot),
        }
    }

    /// The request or response itself, which is encoded only now.
    fn pump_head(&mut self, slot: Slot) {
        let Some(stream) = self.streams.at(slot) else {
            return;
        };
        let id = stream.id;
        let Some(mut pending) = stream.pending.take() else {
            return;
        };
        let (head, ends) = pending.head();
        let bytes = head.held_bytes();
        self.write_headers(id, head, ends);
        pending.head_sent();
        let more = pending.len() > 0 || pending.then != Then::Nothing;
        if let Some(stream) = self.streams.at(slot) {
            stream.pending = Some(pending);
        }
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        self.report(slot, 0, bytes);
        match more {
            true => self.streams.update_ready(slot),
            false => self.finish_queue(slot),
        }
    }

    /// One frame of queued DATA, and what follows when it was the last.
    fn pump_data(&mut self, slot: Slot) {
        let max = self.largest_data_frame();
        let Some(stream) = self.streams.at(slot) else {
            return;
        };
        let window = stream.send_window.available();
        let Some(pending) = stream.pending.as_mut().filter(|_| window > 0) else {
            // Blocked on its own window: a WINDOW_UPDATE or SETTINGS brings it back.
            self.streams.remove_ready(slot);
            return;
        };
        let len = pending.len();
        let n = len.min(max).min(window).min(self.send_window.available());
        let last = n == len;
        let end_stream = last && pending.then == Then::End;
        self.output.data(stream.id, pending.front(n), end_stream);
        pending.consume(n);
        if end_stream {
            pending.then = Then::Nothing;
            stream.send = Half::Ended;
        }
        stream.send_window.take(n);
        self.send_window.take(n);
        self.pending_bytes = self.pending_bytes.saturating_sub(n);
        self.abuse.control.earn();
        self.report(slot, n, 0);
        if last {
            self.finish_queue(slot);
        } else {
            self.streams.rotate();
        }
    }

    /// No list and no DATA is left: writes what follows, and releases the queue.
    fn finish_queue(&mut self, slot: Slot) {
        self.streams.remove_ready(slot);
        let Some(stream) = self.streams.at(slot) else {
            return;
        };
        let (id, reset) = (stream.id, stream.reset.take());
        let Some(pending) = stream.pending.take() else {
            return;
        };
        if pending.ends() {
            stream.send = Half::Ended;
        }
        match pending.then {
            Then::Nothing => {}
            Then::End => self.output.data(id, &[], true),
            Then::Trailers => {
                self.write_trailers(id, &pending.trailers);
                let bytes = pending.trailers.held_bytes();
                self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
                self.report(slot, 0, bytes);
            }
        }
        self.give_back(pending);
        let over = self.streams.at(slot).is_some_and(|stream| stream.is_over());
        match reset {
            _ if over => {
                self.drop_stream(id, End::Known);
            }
            Some(code) => self.write_reset(id, code),
            None => {}
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

    /// What cannot be written now waits in its stream.
    fn queue(&mut self, slot: Slot, rest: &[u8], then: Then) {
        let mut pending = self.pool.pop().unwrap_or_default();
        pending.push(rest);
        pending.then = then;
        self.pending_bytes += rest.len();
        let Some(stream) = self.streams.at(slot) else {
            return;
        };
        stream.pending = Some(pending);
        self.streams.update_ready(slot);
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

    /// Continues a stream's queue after its window grew.
    pub(crate) fn unblock(&mut self, slot: Slot) {
        self.streams.update_ready(slot);
        if self.streams.any_ready() {
            self.pump();
        }
    }

    /// Continues all queues after every window grew.
    pub(crate) fn unblock_all(&mut self) {
        for slot in 0..self.streams.slots() {
            self.streams.update_ready(slot);
        }
        self.pump();
    }

    /// Adds to the reports of written DATA and lists; a stream has at most one report in the queue.
    fn report(&mut self, slot: Slot, bytes: usize, list_bytes: usize) {
        let number = self.reports_taken + self.reports.len() as u64;
        let Some(stream) = self.streams.at(slot) else {
            return;
        };
        let at = stream.report.checked_sub(self.reports_taken);
        let at = at.and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| self.reports.get_mut(at)) {
            Some(report) => {
                report.bytes += bytes;
                report.list_bytes += list_bytes;
            }
            None => {
                stream.report = number;
                self.reports.push_back(Drained {
                    stream: stream.id(),
                    token: stream.token,
                    bytes,
                    list_bytes,
                });
            }
        }
    }

    fn largest_data_frame(&self) -> usize {
        usize::try_from(self.peer.max_frame_size).map_or(TURN_BYTES, |max| max.min(TURN_BYTES))
    }

    fn write_headers(&mut self, id: u32, fields: &Fields, end_stream: bool) {
        let encoder = &mut self.encoder;
        self.output
            .headers(id, end_stream, self.peer.max_frame_size, |out| {
                encoder.encode(fields, out);
            });
        self.abuse.control.earn();
    }

    /// Trailers end the stream. An empty list would be an empty block, which some peers reject; an
    /// empty DATA frame means the same.
    fn write_trailers(&mut self, id: u32, fields: &Fields) {
        if fields.is_empty() {
            self.output.data(id, &[], true);
        } else {
            self.write_headers(id, fields, true);
        }
    }

    fn write_reset(&mut self, id: u32, code: ErrorCode) {
        self.output.reset(id, code);
        self.counters.resets_sent += 1;
        self.drop_stream(id, End::ResetByUs);
    }
}
