//! Errors of the peer and what they cost it (RFC 9113 §5.1, §5.4, §10.5): frames on idle or closed
//! streams, stream errors, frames without a message. Takes ids and costs; writes RST_STREAM,
//! returns an event, or ends the connection. Frames that are merely late are not errors.

use crate::connection::Connection;
use crate::error::{ConnectionError, ErrorCode, Initiator};
use crate::event::{Event, StreamId};
use crate::recv::Answer;
use crate::streams::End;

/// Costs of frames that carry no message (see `abuse.rs`).
pub(crate) mod cost {
    pub(crate) const ORDINARY: i32 = 1;
    /// Costs more work than others, or requires an answer.
    pub(crate) const EXPENSIVE: i32 = 4;
}

impl Connection {
    /// Checks that a stream has been opened; frames on idle streams are connection errors (§5.1).
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

    /// DATA on a closed stream (§5.1). Late DATA of streams that we reset is not an error; how streams
    /// ended that ended long ago is not known.
    pub(crate) fn on_closed<'i>(&mut self, id: u32) -> Answer<'i> {
        let after_goaway = self.is_server && self.goaway_sent.is_some_and(|last| id > last);
        match self.streams.ended(id) {
            _ if after_goaway => Ok(None),
            Some(End::ResetByUs) => Ok(None),
            Some(End::Known) => self.stream_error(id, ErrorCode::STREAM_CLOSED),
            None => self.charge(cost::ORDINARY).map(|()| None),
        }
    }

    /// A stream error of the peer (§5.4.2): RST_STREAM, and an event if the application knows the
    /// stream.
    pub(crate) fn stream_error<'i>(&mut self, id: u32, code: ErrorCode) -> Answer<'i> {
        self.counters.stream_errors += 1;
        if !self.abuse.provoked.take(1, self.now) {
            return Err(ConnectionError::enhance_your_calm("too many stream errors"));
        }
        self.answer_reset(id, code)?;
        let Some(token) = self.drop_stream(id, End::ResetByUs) else {
            self.streams.remember(id, End::ResetByUs);
            return Ok(None);
        };
        Ok(Some(Event::Reset {
            stream: StreamId(id),
            token,
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

    /// Charges for a frame that carries no message.
    #[inline]
    pub(crate) fn charge(&mut self, cost: i32) -> Result<(), ConnectionError> {
        match self.abuse.control.take(cost, self.now) {
            true => Ok(()),
            false => Err(ConnectionError::enhance_your_calm(
                "too many control frames",
            )),
        }
    }

    /// Whether the peer reads the answers that it causes.
    pub(crate) fn bound_control(&self) -> Result<(), ConnectionError> {
        match self.output.unread_control() > self.config.control_queue {
            true => Err(ConnectionError::enhance_your_calm(
                "replies to control frames are not read",
            )),
            false => Ok(()),
        }
    }
}
