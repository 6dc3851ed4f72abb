//! One connection of a worker, whichever side opened it: transport, HTTP/2 machine, the calls that have a stream
//! on it and what is to happen to it next. Only state and small questions about it stand here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use heddle_h2::{Connection, StreamId};

use super::Role;
use super::arena::Key;
use super::timers::TimerId;
use super::transport::Transport;
use crate::exchange::queued::MIN_TAKEN;
use crate::exchange::state::Call;
use crate::listener::http1::Sniff;
use crate::listener::places::PlaceState;
use crate::upstream::cancels::Cancels;
use crate::upstream::pool::Pool;

pub(crate) type ConnKey = Key<Conn>;
pub(crate) type CallKey = Key<Call>;
pub(crate) type PoolKey = Key<Pool>;

/// Token of a stream that was answered while its request still comes: the rest is thrown away.
pub(crate) const LINGER: u64 = u64::MAX;
/// Token of the stream that carries a link's Hello.
pub(crate) const HELLO: u64 = u64::MAX - 1;
/// Token of a stream whose cancel waits to be sent.
pub(crate) const LATE: u64 = u64::MAX - 2;
/// What a keep-alive carries; nobody reads it.
pub(crate) const PING: [u8; 8] = *b"heddle\0\0";
/// What a PING carries whose answer says which streams another proxy has had.
pub(crate) const PING_SETTLED: [u8; 8] = *b"heddle\0s";
/// How long a caller may go on sending after it was answered, before the stream is reset with NO_ERROR.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(1);
/// How many such streams one connection may have; the oldest is reset first.
pub(crate) const LINGER_STREAMS: usize = 128;
/// How long a connection that is being closed may take to read our last bytes.
pub(crate) const CLOSE_TIME: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) transport: Transport,
    pub(crate) h2: Connection,
    pub(crate) side: Side,
    /// Calls with a stream here; each knows its place in this list.
    pub(crate) calls: Vec<CallKey>,
    /// Stands in the worker's list of connections to flush.
    pub(crate) dirty: bool,
    /// The peer has closed its half, or the socket failed: reading goes on to the very end.
    pub(crate) read_closed: bool,
    /// Why nothing more can be written: what the peer sent before is still read.
    pub(crate) write_failed: Option<String>,
    /// The socket is full: it tells when it takes more.
    pub(crate) blocked: bool,
    /// Stands in the worker's list of connections with more to read.
    pub(crate) unread: bool,
    pub(crate) ending: Ending,
    pub(crate) timer: Option<(Instant, TimerId)>,
    pub(crate) last_read: Instant,
    /// Answered streams whose request still comes, oldest first.
    pub(crate) linger: VecDeque<(Instant, StreamId)>,
    /// What its calls hold elsewhere, charged to it as their caller.
    pub(crate) charged: usize,
    /// What waits in its machine, as it was counted last.
    pub(crate) machine: usize,
    /// While its socket is full: since when the peer has read next to nothing, and what it has read since.
    stall: Option<(Instant, usize)>,
    /// Of the streams over the bound those that are counted.
    pub(crate) refused: u64,
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It lives.
    No,
    /// What is in the output is written, then our half is closed.
    Flush(Instant),
    /// Our half is closed; the peer's bytes are read and thrown away, lest a TCP reset eat our last ones.
    Wait(Instant),
}

#[derive(Debug)]
pub(crate) enum Side {
    Down(Down),
    Up(Up),
}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) struct Down {
    pub(crate) role: Role,
    pub(crate) sniff: Sniff,
    pub(crate) place: PlaceState,
    pub(crate) hello: Option<Hello>,
    /// How long it may be silent while it has calls; services on this node are not asked.
    pub(crate) keepalive: Option<Duration>,
    /// A keep-alive that was not answered yet.
    pub(crate) ping: Option<Instant>,
    /// The worker has said goodbye on it.
    pub(crate) goodbye: bool,
}

/// The Hello that is coming in on a link.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) stream: StreamId,
    /// What has come of it.
    pub(crate) bytes: Vec<u8>,
    /// When it is to be there.
    pub(crate) until: Instant,
}

/// A connection that was opened.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) pool: PoolKey,
    pub(crate) state: UpState,
    /// Cancels of calls, which are not all sent at once.
    pub(crate) cancels: Cancels,
    /// A keep-alive that was not answered yet.
    pub(crate) ping: Option<Instant>,
    /// Since when it has no call.
    pub(crate) idle_since: Instant,
    /// What its GOAWAY said.
    pub(crate) goaway: Option<heddle_h2::ErrorCode>,
    /// It takes no new calls: GOAWAY, or nobody wants it any more.
    pub(crate) leaving: bool,
    /// How long it may be silent while it has calls.
    pub(crate) keepalive: Duration,
}

#[derive(Debug)]
pub(crate) enum UpState {
    /// The socket is not connected yet.
    Connecting(Instant),
    /// Waits for the server's settings.
    Settings(Instant),
    /// A link that waits for the answer to its Hello: the bytes of the answer so far.
    Hello(Instant, Vec<u8>),
    Ready,
}

impl Conn {
    pub(crate) fn new(transport: Transport, h2: Connection, side: Side, now: Instant) -> Self {
        Self {
            transport,
            h2,
            side,
            calls: Vec::new(),
            dirty: false,
            read_closed: false,
            write_failed: None,
            blocked: false,
            unread: false,
            ending: Ending::No,
            timer: None,
            last_read: now,
            linger: VecDeque::new(),
            charged: 0,
            machine: 0,
            stall: None,
            refused: 0,
        }
    }

    pub(crate) fn up(&self) -> Option<&Up> {
        match &self.side {
            Side::Up(up) => Some(up),
            Side::Down(_) => None,
        }
    }

    pub(crate) fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.side {
            Side::Up(up) => Some(up),
            Side::Down(_) => None,
        }
    }

    pub(crate) fn down(&self) -> Option<&Down> {
        match &self.side {
            Side::Down(down) => Some(down),
            Side::Up(_) => None,
        }
    }

    pub(crate) fn down_mut(&mut self) -> Option<&mut Down> {
        match &mut self.side {
            Side::Down(down) => Some(down),
            Side::Up(_) => None,
        }
    }

    /// Whether it was accepted and has not shown yet what it speaks.
    pub(crate) fn is_unknown(&self) -> bool {
        self.down()
            .is_some_and(|down| matches!(down.sniff, Sniff::Open(_)))
    }

    /// Whether another call may be sent on it now. Not while the server leaves much unread: a header list is held back
    /// by no window, so the call waits for room here, or goes over another connection.
    pub(crate) fn has_room(&self) -> bool {
        let limit = self.h2.peer_stream_limit();
        let ready = self.up().is_some_and(|up| {
            matches!(up.state, UpState::Ready) && !up.leaving && !up.cancels.is_burdened(limit)
        });
        ready && self.ending == Ending::No && self.h2.open_slots() > 0 && self.h2.has_output_room()
    }

    /// The socket took so many bytes, and no more for now. One byte now and then is no progress.
    pub(crate) fn note_stall(&mut self, written: usize, now: Instant) {
        let (since, taken) = self.stall.unwrap_or((now, 0));
        let taken = taken + written;
        self.stall = match taken >= MIN_TAKEN {
            true => Some((now, 0)),
            false => Some((since, taken)),
        };
    }

    /// The socket took all that there was.
    pub(crate) fn end_stall(&mut self) {
        self.stall = None;
    }

    /// Since when the peer has read next to nothing of what waits for it.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.stall.map(|(since, _)| since)
    }

    /// The pool whose calls may wait because the server leaves much unread.
    pub(crate) fn full_for(&self) -> Option<PoolKey> {
        let up = self.up()?;
        (!self.h2.has_output_room()).then_some(up.pool)
    }

    /// The stream was answered: what still comes of its request is thrown away for a while.
    pub(crate) fn linger_on(&mut self, stream: StreamId, now: Instant) {
        self.h2.set_token(stream, LINGER);
        if self.linger.len() >= LINGER_STREAMS
            && let Some((_, oldest)) = self.linger.pop_front()
        {
            self.h2.reset(oldest, heddle_h2::ErrorCode::NO_ERROR);
        }
        self.linger.push_back((now + LINGER_TIME, stream));
    }

    /// When something is to be done about it at the latest.
    pub(crate) fn deadline(&self, idle: Duration, keepalive_timeout: Duration) -> Option<Instant> {
        let ending = match self.ending {
            Ending::Flush(until) | Ending::Wait(until) => return Some(until),
            Ending::No => self.h2.deadline(),
        };
        let linger = self.linger.front().map(|(until, _)| *until);
        let side = match &self.side {
            Side::Up(up) => Some(self.up_deadline(up, idle, keepalive_timeout)),
            Side::Down(down) => self.down_deadline(down, keepalive_timeout),
        };
        [ending, linger, side].into_iter().flatten().min()
    }

    fn down_deadline(&self, down: &Down, keepalive_timeout: Duration) -> Option<Instant> {
        let every = down.keepalive.filter(|_| !self.calls.is_empty());
        let life = every.map(|every| match down.ping {
            Some(sent) => sent + keepalive_timeout,
            None => self.last_read + every,
        });
        let hello = down.hello.as_ref().map(|hello| hello.until);
        [life, hello, down.place.first_by()]
            .into_iter()
            .flatten()
            .min()
    }

    fn up_deadline(&self, up: &Up, idle: Duration, keepalive_timeout: Duration) -> Instant {
        let state = match up.state {
            UpState::Connecting(until) | UpState::Settings(until) | UpState::Hello(until, _) => {
                until
            }
            UpState::Ready if self.calls.is_empty() => up.idle_since + idle,
            UpState::Ready => match up.ping {
                Some(sent) => sent + keepalive_timeout,
                None => self.last_read + up.keepalive,
            },
        };
        up.cancels.due().map_or(state, |at| at.min(state))
    }
}

/// What a silent connection with calls needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulse {
    Fine,
    /// A keep-alive is to be sent.
    Ask,
    /// It has not answered one: it is dead.
    Lost,
}

/// Looks at a connection that may be silent for `every` and, once asked, for `timeout`.
pub(crate) fn pulse(
    ping: &mut Option<Instant>,
    last_read: Instant,
    (every, timeout): (Duration, Duration),
    now: Instant,
) -> Pulse {
    match *ping {
        Some(sent) if last_read > sent => *ping = None,
        Some(sent) if sent + timeout <= now => return Pulse::Lost,
        None if last_read + every <= now => {
            *ping = Some(now);
            return Pulse::Ask;
        }
        _ => {}
    }
    Pulse::Fine
}
