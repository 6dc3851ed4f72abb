//! What waits in streams: header lists and DATA that could not be written at once. Written in turns, one
//! list or frame of a stream after the other, within both windows and the space in the output; reported
//! to the application when it is written. What is queued is decided in `send.rs`.

use crate::connection::Connection;
use crate::event::{Drained, StreamId};
use crate::stream::{Half, Pending, Then};
use crate::streams::{End, Slot};

impl Connection {
    /// Keeps a header list in its stream until there is space in the output.
    #[cold]
    pub(crate) fn queue_list(&mut self, id: u32, put: impl FnOnce(&mut Pending) -> usize) -> usize {
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

    /// Drops queued DATA of a stream and what follows it, also END_STREAM: the peer never sees the end. For a stream that is
    /// going to be reset later; returns the number of bytes. A request that is all in its header list is left unchanged.
    pub fn abandon(&mut self, stream: StreamId) -> usize {
        let at = self
            .streams
            .slot(stream.0)
            .and_then(|slot| self.streams.at(slot));
        let Some(at) = at.filter(|at| at.send == Half::Closing && at.reset.is_none()) else {
            return self.discard(stream);
        };
        let Some(pending) = at.pending.as_mut().filter(|pending| !pending.head().1) else {
            return 0;
        };
        let abandoned = pending.abandon();
        // It is open again, without anything to send.
        at.send = Half::Body;
        let empty = !pending.has_head();
        let empty = at.pending.take_if(|_| empty);
        self.pending_bytes = self.pending_bytes.saturating_sub(abandoned);
        if let Some(slot) = self.streams.slot(stream.0) {
            self.streams.update_ready(slot);
        }
        if let Some(pending) = empty {
            self.give_back(pending);
        }
        abandoned
    }

    /// What cannot be written now waits in its stream.
    pub(crate) fn queue(&mut self, slot: Slot, rest: &[u8], then: Then) {
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
        let bytes = head.memory_bytes();
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
                let bytes = pending.trailers.memory_bytes();
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
}
