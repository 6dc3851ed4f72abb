//! Frames that carry no message (RFC 9113 §6.3 – §6.9): WINDOW_UPDATE, RST_STREAM, SETTINGS, PING,
//! GOAWAY, PRIORITY; one function per type. Takes complete payloads whose lengths are already
//! checked; changes the connection and returns an event where the application must know. No DATA
//! and no header blocks.

use crate::abuse::SETTINGS_PER_FRAME;
use crate::connection::{Connection, DRAIN_PING, PROBE_PING};
use crate::error::{ConnectionError, ErrorCode, Initiator};
use crate::event::{Event, StreamId};
use crate::fault::cost;
use crate::frame::{self, Head, flag};
use crate::recv::{Answer, take};
use crate::settings::HEADER_TABLE_SIZE;
use crate::stream::Half;
use crate::streams::End;

/// The scan for streams above the last id of the peer's GOAWAY, which are reported one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unprocessed {
    from: usize,
    last: u32,
}

impl Connection {
    /// WINDOW_UPDATE (§6.9).
    pub(crate) fn on_window_update<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        self.charge(cost::ORDINARY)?;
        let increment = frame::number(payload) & frame::MAX_31;
        let id = head.stream;
        if id == 0 {
            if increment == 0 {
                return Err(ConnectionError::protocol("WINDOW_UPDATE of 0"));
            }
            if self.send_window.give(increment).is_err() {
                return Err(ConnectionError::flow_control(
                    "the connection's window would exceed 2^31-1",
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
    pub(crate) fn on_reset<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        let id = head.stream;
        self.not_idle(id)?;
        self.counters.resets_received += 1;
        let code = ErrorCode(frame::number(payload));
        // A server can only reset streams that we opened; a client can open and reset for ever.
        if self.is_server && !self.may_reset(id) {
            return Err(ConnectionError::enhance_your_calm(
                "too many streams were reset right after they were opened",
            ));
        }
        let Some(token) = self.drop_stream(id, End::Known) else {
            self.charge(cost::ORDINARY)?;
            return Ok(None);
        };
        Ok(Some(Event::Reset {
            stream: StreamId(id),
            token,
            code,
            unprocessed: code == ErrorCode::REFUSED_STREAM,
            by: Initiator::Remote,
        }))
    }

    /// Whether the client may reset this stream too. Resetting one that is gone costs only a control
    /// frame.
    fn may_reset(&mut self, id: u32) -> bool {
        let (now, clock) = (self.now, self.clock_ms());
        match self.streams.get(id) {
            Some(stream) if stream.send == Half::Headers => {
                let age = clock.wrapping_sub(stream.opened_ms);
                self.abuse.resets.unanswered(age, now)
            }
            _ => true,
        }
    }

    /// SETTINGS (§6.5), all of it or, on an error, none.
    pub(crate) fn on_settings<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
        if head.has(flag::ACK) {
            self.on_settings_ack();
            return Ok(None);
        }
        if head.len / 6 > SETTINGS_PER_FRAME {
            return Err(ConnectionError::enhance_your_calm(
                "too many parameters in SETTINGS",
            ));
        }
        self.charge(cost::EXPENSIVE)?;
        let mut peer = self.peer.clone();
        peer.first();
        for (id, value) in frame::settings(payload) {
            peer.set(id, value, !self.is_server)?;
        }
        // Each value counts for the encoder: it must signal the smallest (RFC 7541 §4.2).
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
                    "SETTINGS_INITIAL_WINDOW_SIZE makes a stream's window exceed 2^31-1",
                ));
            }
        }
        Ok(())
    }

    /// The peer knows our settings: a smaller window than the default applies from now on.
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
            // All data may have been released before: no later release would send the update.
            if let Some(increment) = stream.recv_window.release(0, target)
                && stream.recv < Half::Ended
            {
                self.output.window_update(stream.id, increment);
            }
        }
    }

    /// PING (§6.7).
    pub(crate) fn on_ping<'i>(&mut self, head: &Head, payload: &[u8]) -> Answer<'i> {
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
                && !self.config.low_memory
            {
                self.targets.stream = grown.stream_target;
                self.targets.connection = grown.connection_target;
                self.counters.window_growths += 1;
            }
        } else if payload == DRAIN_PING {
            self.finish_drain();
        } else if self.application_ping == Some(payload) {
            self.application_ping = None;
            return Ok(Some(Event::PingAck(payload)));
        } else {
            self.charge(cost::ORDINARY)?;
        }
        Ok(None)
    }

    /// GOAWAY (§6.8). The fixed part is the payload here; debug data is what lies in the input.
    pub(crate) fn on_goaway<'i>(
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
        self.charge(cost::EXPENSIVE)?;
        self.goaway_received = Some(last);
        let len = head.len.saturating_sub(8);
        let (debug, n) = take(input, len);
        self.skip(len - n);
        // A client's GOAWAY counts pushed streams; those that it opened go on.
        if !self.is_server {
            self.unprocessed_above = Some(Unprocessed { from: 0, last });
        }
        Ok(Event::GoAway { code, debug })
    }

    /// The next stream above the last id of the peer's GOAWAY.
    pub(crate) fn next_unprocessed<'i>(&mut self) -> Option<Event<'i>> {
        let unprocessed_above = self.unprocessed_above?;
        let Some((id, next)) = self
            .streams
            .scan(unprocessed_above.from, unprocessed_above.last)
        else {
            self.unprocessed_above = None;
            return None;
        };
        self.unprocessed_above = Some(Unprocessed {
            from: next,
            ..unprocessed_above
        });
        let token = self.drop_stream(id, End::ResetByUs)?;
        Some(Event::Reset {
            stream: StreamId(id),
            token,
            code: ErrorCode::REFUSED_STREAM,
            unprocessed: true,
            by: Initiator::Remote,
        })
    }

    /// PRIORITY (§6.3): parsed and ignored.
    pub(crate) fn on_priority<'i>(&mut self, head: &Head) -> Answer<'i> {
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
}
