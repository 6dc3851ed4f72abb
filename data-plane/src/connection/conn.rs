//! State and operations of one connection, accepted or opened. What only one of the two kinds has is in `accepted` and
//! `opened`. No decisions about calls.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use heddle_h2::{Connection, ConnectionError, ErrorCode, Event, Fields, StreamId};

use super::MIN_TAKEN;
use super::accepted::Accepted;
use super::opened::Opened;
use super::sniff::{self, Sniff};
use super::transport::{Handshake, ReadOutcome, Transport};
use crate::caller::{Caller, Peer, Role};
use crate::keys::{CallKey, PoolKey};
use crate::policy::buffers::ConnCharge;
use crate::timers::TimerId;

/// Token of a stream that was answered before its request ended: the rest is discarded.
pub(crate) const LINGER: u64 = u64::MAX;
/// Token of the stream that carries a link's Hello.
pub(crate) const HELLO: u64 = u64::MAX - 1;
/// Token of a stream whose cancel waits.
pub(crate) const LATE: u64 = u64::MAX - 2;
/// Payload of a keep-alive PING; nobody reads it.
pub(super) const PING: [u8; 8] = *b"heddle\0\0";
/// How long a closing connection may take to read our last bytes.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// A peer that leaves more than this unread is disconnected. Header lists and DATA are queued in their streams long
/// before, so only control frames can add up to this: acknowledgements, resets and credit for a peer that keeps
/// sending.
const OUTPUT_BYTES: usize = 8 << 20;

#[derive(Debug)]
pub(crate) struct Conn {
    transport: Transport,
    handshake: Handshake,
    pub(super) h2: Connection,
    pub(super) side: Side,
    /// Calls with a stream here; each knows its index in this list.
    pub(super) calls: Vec<CallKey>,
    /// It is in the list of connections to flush.
    pub(super) to_flush: bool,
    /// It is in the list of connections to read again.
    pub(super) to_read: bool,
    /// The peer has closed its half, or the socket failed: it is read until its end.
    input_ends: bool,
    /// Why nothing more can be written. What the peer sent before is still read.
    write_error: Option<String>,
    /// The socket takes no more until it becomes writable.
    pub(super) blocked: bool,
    /// The transport has to write before it can read on: it is read when the socket becomes writable.
    reads_when_writable: bool,
    ending: Ending,
    pub(super) timer: Option<(Instant, TimerId)>,
    pub(super) last_read: Instant,
    /// Answered streams whose request has not ended, oldest first.
    pub(super) linger: VecDeque<(Instant, StreamId)>,
    /// The buffered bytes that are charged to it.
    pub(super) buffered: ConnCharge,
    /// While its socket is full: start of the current measurement of the peer, and the bytes that it has read since.
    stall: Option<(Instant, usize)>,
    /// How many refused streams have already been counted.
    refused: u64,
    /// It is among the connections that may keep large empty buffers.
    pub(super) keeps_spare: bool,
}

/// Progress of closing a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is not being closed.
    No,
    /// The output is written, then our half is closed.
    Flush(Instant),
    /// Our half is closed. The peer's bytes are read and discarded, since a TCP reset could destroy our last bytes.
    Wait(Instant),
}

#[derive(Debug)]
pub(crate) enum Side {
    Accepted(Accepted),
    Opened(Opened),
}

/// Result of a read.
#[derive(Debug)]
pub(crate) enum Input {
    Bytes {
        len: usize,
        /// Whether there may be more to read now.
        more: bool,
    },
    Blocked,
    /// The connection has ended, with the reason.
    Closed(String),
}

/// State of the output after a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputState {
    /// The output is empty, or nothing may be written now.
    Done,
    Blocked,
    /// The peer has left too much unread.
    Overfull,
    /// Nothing can be written any more. The socket may still have input, which is read to its end first.
    Failed,
}

/// Which timer of a connection is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// Opened: the socket was not connected in time.
    Connect,
    /// Opened: the settings or the answer to Hello did not arrive in time.
    Ready,
    /// Opened: it has had no call for too long.
    Idle,
    /// Accepted: no request arrived in time.
    FirstRequest,
    /// A keep-alive was not answered.
    KeepaliveLost,
}

impl Conn {
    pub(super) fn new(transport: Transport, h2: Connection, side: Side, now: Instant) -> Self {
        let handshake = match side {
            Side::Accepted(_) => transport.accepted_state(),
            Side::Opened(_) => Handshake::Pending,
        };
        Self {
            transport,
            handshake,
            h2,
            side,
            calls: Vec::new(),
            to_flush: false,
            to_read: false,
            input_ends: false,
            write_error: None,
            blocked: false,
            reads_when_writable: false,
            ending: Ending::No,
            timer: None,
            last_read: now,
            linger: VecDeque::new(),
            buffered: ConnCharge::default(),
            stall: None,
            refused: 0,
            keeps_spare: false,
        }
    }

    // ---- the peer

    /// The caller, if the connection was accepted.
    pub(crate) fn caller(&self) -> Option<&Caller> {
        match &self.side {
            Side::Accepted(accepted) => Some(accepted.caller()),
            Side::Opened(_) => None,
        }
    }

    pub(crate) fn role(&self) -> Option<Role> {
        self.caller().map(|caller| caller.role)
    }

    pub(crate) fn is_accepted(&self) -> bool {
        matches!(self.side, Side::Accepted(_))
    }

    /// The pool for which it was opened.
    pub(crate) fn pool(&self) -> Option<PoolKey> {
        self.opened().map(Opened::pool)
    }

    pub(crate) fn peer(&self) -> Peer {
        self.caller()
            .map_or_else(|| self.transport.peer(), |caller| caller.peer)
    }

    pub(crate) fn accepted(&self) -> Option<&Accepted> {
        match &self.side {
            Side::Accepted(accepted) => Some(accepted),
            Side::Opened(_) => None,
        }
    }

    pub(crate) fn accepted_mut(&mut self) -> Option<&mut Accepted> {
        match &mut self.side {
            Side::Accepted(accepted) => Some(accepted),
            Side::Opened(_) => None,
        }
    }

    pub(crate) fn opened(&self) -> Option<&Opened> {
        match &self.side {
            Side::Opened(opened) => Some(opened),
            Side::Accepted(_) => None,
        }
    }

    pub(crate) fn opened_mut(&mut self) -> Option<&mut Opened> {
        match &mut self.side {
            Side::Opened(opened) => Some(opened),
            Side::Accepted(_) => None,
        }
    }

    // ---- bytes

    pub(super) fn transport_mut(&mut self) -> &mut Transport {
        &mut self.transport
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.handshake == Handshake::Pending
    }

    /// Continues the transport's handshake; true once it is done.
    pub(crate) fn advance_handshake(&mut self) -> std::io::Result<bool> {
        self.handshake = self.transport.handshake()?;
        Ok(self.handshake == Handshake::Done)
    }

    /// The socket has room again. True if reading waited for that.
    pub(crate) fn on_writable(&mut self) -> bool {
        self.blocked = false;
        std::mem::take(&mut self.reads_when_writable)
    }

    /// The peer has closed its half, or the socket failed.
    pub(crate) fn on_input_end(&mut self) {
        self.input_ends = true;
    }

    /// Reads what has arrived.
    pub(crate) fn read(&mut self, buffer: &mut [u8], now: Instant) -> Input {
        match self.transport.read(buffer) {
            Ok(ReadOutcome::Bytes { len, more }) => {
                self.last_read = now;
                // No further event reports the end of the input.
                let more = more || self.input_ends;
                Input::Bytes { len, more }
            }
            Ok(ReadOutcome::Blocked) if self.write_error.is_none() => Input::Blocked,
            Ok(ReadOutcome::WantsWrite) if self.write_error.is_none() => {
                self.reads_when_writable = true;
                Input::Blocked
            }
            end => {
                let why = self.write_error.take();
                Input::Closed(why.unwrap_or_else(|| match end {
                    Err(error) => error.to_string(),
                    Ok(_) => "the peer closed it".to_owned(),
                }))
            }
        }
    }

    /// Detects the protocol from the first bytes of an accepted connection. Returns the states before and after; the
    /// one before has the bytes that were held back.
    pub(crate) fn identify(&mut self, bytes: &[u8]) -> (Sniff, Sniff) {
        let Side::Accepted(accepted) = &mut self.side else {
            return (Sniff::Http2, Sniff::Http2);
        };
        accepted.identify(bytes)
    }

    /// The next event in `bytes`, which are consumed up to it.
    pub(crate) fn receive<'i>(
        &mut self,
        bytes: &mut &'i [u8],
        fields: &mut Fields,
        now: Instant,
    ) -> Result<Option<Event<'i>>, ConnectionError> {
        self.h2.recv(bytes, fields, now)
    }

    /// Number of streams refused over the limit since the last call.
    pub(crate) fn newly_refused(&mut self) -> u64 {
        let refused = self.h2.counters().refused;
        refused - std::mem::replace(&mut self.refused, refused)
    }

    /// Whether it was accepted and its protocol is not known yet.
    pub(crate) fn is_unknown(&self) -> bool {
        self.accepted().is_some_and(Accepted::is_unknown)
    }

    /// Writes as much output as the socket takes.
    pub(crate) fn flush(&mut self, now: Instant) -> OutputState {
        loop {
            // HTTP/2 frames must not be sent to an HTTP/1 caller.
            let unknown = self.is_unknown() && self.ending == Ending::No;
            let over = matches!(self.ending, Ending::Wait(_)) || self.write_error.is_some();
            if self.is_handshaking() || unknown || over {
                return OutputState::Done;
            }
            let output = self.h2.output();
            if output.is_empty() && !self.transport.has_unsent() {
                if let Ending::Flush(until) = self.ending {
                    self.ending = Ending::Wait(until);
                    self.transport.shutdown_write();
                }
                return OutputState::Done;
            }
            if !self.blocked {
                let outcome = match self.transport.write(output) {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        self.input_ends = true;
                        self.write_error = Some(error.to_string());
                        return OutputState::Failed;
                    }
                };
                if outcome.written > 0 {
                    self.h2.advance(outcome.written);
                }
                self.blocked = outcome.blocked;
                match outcome.blocked {
                    true => self.note_stall(outcome.written, now),
                    false => self.stall = None,
                }
            }
            if self.blocked {
                return match self.h2.output().len() > OUTPUT_BYTES {
                    true => OutputState::Overfull,
                    false => OutputState::Blocked,
                };
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn output_bytes(&self) -> usize {
        self.h2.output().len()
    }

    #[cfg(test)]
    pub(crate) fn set_write_error(&mut self, error: Option<String>) {
        self.write_error = error;
    }

    /// Whether the socket takes no more at present.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket took `written` bytes and is full again. A few bytes now and then do not count as progress.
    fn note_stall(&mut self, written: usize, now: Instant) {
        let (since, taken) = self.stall.unwrap_or((now, 0));
        let taken = taken + written;
        self.stall = match taken >= MIN_TAKEN {
            true => Some((now, 0)),
            false => Some((since, taken)),
        };
    }

    /// Since when the peer has read almost nothing of what is queued for it.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.stall.map(|(since, _)| since)
    }

    // ---- closing

    pub(crate) fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// Queues a GOAWAY with the reason for closing.
    pub(crate) fn send_goaway_and_close(&mut self, code: ErrorCode, why: &[u8]) {
        self.h2.close(code, why);
    }

    /// Closes the connection after its output has been written.
    pub(crate) fn begin_close(&mut self, now: Instant) {
        if self.ending == Ending::No {
            self.ending = Ending::Flush(now + CLOSE_TIME);
        }
    }

    /// Writes a last GOAWAY if the socket takes it at once.
    pub(crate) fn close_now(&mut self, why: &[u8]) {
        self.h2.close(ErrorCode::NO_ERROR, why);
        let _ = self.transport.write(self.h2.output());
    }

    /// Answers HTTP/1.x and closes the connection.
    pub(crate) fn refuse_http1(&mut self, now: Instant) {
        // A new socket's buffer has room for the answer. If not, the caller sees a closed connection.
        let _ = self.transport.write(sniff::ANSWER);
        self.transport.shutdown_write();
        self.ending = Ending::Wait(now + CLOSE_TIME);
    }

    // ---- time

    /// When its next timer is due.
    pub(super) fn deadline(&self, idle: Duration, keepalive_timeout: Duration) -> Option<Instant> {
        let ending = match self.ending {
            Ending::Flush(until) | Ending::Wait(until) => return Some(until),
            Ending::No => self.h2.deadline(),
        };
        let linger = self.linger.front().map(|(until, _)| *until);
        let side = match &self.side {
            Side::Opened(opened) => Some(self.opened_deadline(opened, idle, keepalive_timeout)),
            Side::Accepted(accepted) => self.accepted_deadline(accepted, keepalive_timeout),
        };
        [ending, linger, side].into_iter().flatten().min()
    }

    /// Runs the HTTP/2 state machine's own timer if it is due.
    pub(crate) fn check_protocol(&mut self, now: Instant) -> Result<(), ConnectionError> {
        match self.h2.deadline().is_some_and(|at| at <= now) {
            true => self.h2.on_deadline(now),
            false => Ok(()),
        }
    }
}
