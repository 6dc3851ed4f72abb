//! The state of one connection, whichever side opened it, and what its users may do with it. Nothing is decided here
//! about calls; what is kept only for accepted or only for opened connections stands in `accepted` and `opened`.

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

/// Token of a stream that was answered while its request still comes: the rest is thrown away.
pub(crate) const LINGER: u64 = u64::MAX;
/// Token of the stream that carries a link's Hello.
pub(crate) const HELLO: u64 = u64::MAX - 1;
/// Token of a stream whose cancel waits to be sent.
pub(crate) const LATE: u64 = u64::MAX - 2;
/// What the PING of a keepalive carries; nobody reads it.
pub(super) const PING: [u8; 8] = *b"heddle\0\0";
/// How long a connection that is being closed may take to read our last bytes.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// A peer that leaves so much unread is given up. Header lists and DATA wait in their streams long before, so only
/// control frames can come to this: acknowledgements, resets and credit for what the peer goes on sending.
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
    /// The peer has closed its half, or the socket failed: it is read to the very end.
    input_ends: bool,
    /// Why nothing more can be written: what the peer sent before is still read.
    write_error: Option<String>,
    /// The socket takes no more until an event says so.
    pub(super) blocked: bool,
    ending: Ending,
    pub(super) timer: Option<(Instant, TimerId)>,
    pub(super) last_read: Instant,
    /// Answered streams whose request still comes, oldest first.
    pub(super) linger: VecDeque<(Instant, StreamId)>,
    /// The buffered bytes that it is charged for.
    pub(super) buffered: ConnCharge,
    /// While its socket is full: since when the peer has read next to nothing, and what it has read since.
    stall: Option<(Instant, usize)>,
    /// How many refused streams have been counted.
    refused: u64,
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is not being closed.
    No,
    /// What is in the output is written, then our half is closed.
    Flush(Instant),
    /// Our half is closed; the peer's bytes are read and thrown away, lest a TCP reset destroy our last ones.
    Wait(Instant),
}

#[derive(Debug)]
pub(crate) enum Side {
    Accepted(Accepted),
    Opened(Opened),
}

/// What reading a connection brought.
#[derive(Debug)]
pub(crate) enum Input {
    Bytes {
        len: usize,
        /// Whether there may be more to read now.
        more: bool,
    },
    Blocked,
    /// The connection is over, and why.
    Closed(String),
}

/// Where a flush left the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputState {
    /// Nothing is left, or nothing may be written now.
    Done,
    Blocked,
    /// The peer has left too much unread.
    Overfull,
    /// Nothing can be written any more. Input may still lie in the socket: it is read to its end first.
    Failed,
}

/// What is due on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// An opened one: the socket was not connected in time.
    Connect,
    /// An opened one: settings, or the answer to Hello, did not come in time.
    Ready,
    /// An opened one: it had no call for long.
    Idle,
    /// An accepted one: no request came in time.
    FirstRequest,
    /// A keepalive was not answered.
    KeepaliveLost,
}

impl Conn {
    pub(super) fn new(transport: Transport, h2: Connection, side: Side, now: Instant) -> Self {
        let handshake = match side {
            Side::Accepted(_) => Handshake::Done,
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
            ending: Ending::No,
            timer: None,
            last_read: now,
            linger: VecDeque::new(),
            buffered: ConnCharge::default(),
            stall: None,
            refused: 0,
        }
    }

    // ---- who is at the other end

    /// Who is at the other end, if it was accepted.
    pub(crate) fn caller(&self) -> Option<Caller> {
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

    /// The pool that it was opened for.
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

    /// Goes on with the transport's handshake; true once it is done.
    pub(crate) fn advance_handshake(&mut self) -> std::io::Result<bool> {
        self.handshake = self.transport.handshake()?;
        Ok(self.handshake == Handshake::Done)
    }

    /// The socket has room again.
    pub(crate) fn on_writable(&mut self) {
        self.blocked = false;
    }

    /// The peer has closed its half, or the socket failed.
    pub(crate) fn on_input_end(&mut self) {
        self.input_ends = true;
    }

    /// Reads what has come.
    pub(crate) fn read(&mut self, buffer: &mut [u8], now: Instant) -> Input {
        match self.transport.read(buffer) {
            Ok(ReadOutcome::Bytes { len, more }) => {
                self.last_read = now;
                // The end of the stream makes no event of its own.
                let more = more || self.input_ends;
                Input::Bytes { len, more }
            }
            Ok(ReadOutcome::Blocked) if self.write_error.is_none() => Input::Blocked,
            end => {
                let why = self.write_error.take();
                Input::Closed(why.unwrap_or_else(|| match end {
                    Err(error) => error.to_string(),
                    Ok(_) => "the peer closed it".to_owned(),
                }))
            }
        }
    }

    /// Takes the first bytes of an accepted connection into what shows its protocol. `Http2` comes with the bytes that
    /// were kept until it was known.
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

    /// Streams over the bound that have been refused since the last time.
    pub(crate) fn newly_refused(&mut self) -> u64 {
        let refused = self.h2.counters().refused;
        refused - std::mem::replace(&mut self.refused, refused)
    }

    /// Whether it was accepted and has not shown yet what it speaks.
    pub(crate) fn is_unknown(&self) -> bool {
        self.accepted().is_some_and(Accepted::is_unknown)
    }

    /// Writes the output as far as the socket takes it.
    pub(crate) fn flush(&mut self, now: Instant) -> OutputState {
        loop {
            // A caller of HTTP/1 must not be sent the frames of HTTP/2.
            let unknown = self.is_unknown() && self.ending == Ending::No;
            let over = matches!(self.ending, Ending::Wait(_)) || self.write_error.is_some();
            if self.is_handshaking() || unknown || over {
                return OutputState::Done;
            }
            let output = self.h2.output();
            if output.is_empty() {
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

    /// Whether the socket takes no more for now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket took so many bytes, and no more for now. One byte now and then is no progress.
    fn note_stall(&mut self, written: usize, now: Instant) {
        let (since, taken) = self.stall.unwrap_or((now, 0));
        let taken = taken + written;
        self.stall = match taken >= MIN_TAKEN {
            true => Some((now, 0)),
            false => Some((since, taken)),
        };
    }

    /// Since when the peer has read next to nothing of what waits for it.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.stall.map(|(since, _)| since)
    }

    // ---- its end

    pub(crate) fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// GOAWAY: the peer is told that the connection is closed, and why.
    pub(crate) fn goodbye(&mut self, code: ErrorCode, why: &[u8]) {
        self.h2.close(code, why);
    }

    /// What is in its output is still written, then it is closed.
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

    /// Answers HTTP/1.x and closes.
    pub(crate) fn refuse_http1(&mut self, now: Instant) {
        // A new socket's buffer has room for it; if not, the caller sees a closed connection.
        let _ = self.transport.write(sniff::ANSWER);
        self.transport.shutdown_write();
        self.ending = Ending::Wait(now + CLOSE_TIME);
    }

    // ---- time

    /// When something is to be done about it at the latest.
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

    /// What the protocol's own timer says, if it is due.
    pub(crate) fn check_protocol(&mut self, now: Instant) -> Result<(), ConnectionError> {
        match self.h2.deadline().is_some_and(|at| at <= now) {
            true => self.h2.on_deadline(now),
            false => Ok(()),
        }
    }
}
