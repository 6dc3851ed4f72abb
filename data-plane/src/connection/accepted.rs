//! State of an accepted connection: its caller, its detected protocol, an incoming Hello on a link, its keep-alive and
//! its drain. Takes events of the connection; requests are handled elsewhere.

use std::time::{Duration, Instant};

use heddle_h2::{ErrorCode, StreamId};

use super::conn::{Conn, Due, HELLO, PING, Side};
use super::idlest::IdleState;
use super::keepalive::{Keepalive, KeepaliveState};
use super::sniff::Sniff;
use crate::caller::Caller;

/// How long a connection that has sent nothing may delay a drain. It may have been accepted just now, with its first
/// call still unread.
const FIRST_BYTES: Duration = Duration::from_secs(1);

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    caller: Caller,
    sniff: Sniff,
    pub(super) idle: IdleState,
    hello: Option<Hello>,
    /// Only on links: this node's services are not probed.
    keepalive: Option<Keepalive>,
    /// A drain's GOAWAY has been sent.
    draining: bool,
}

/// How a connection is accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AcceptOptions {
    pub(crate) caller: Caller,
    /// Deadline for its first request.
    pub(crate) first_request_by: Instant,
    /// How long it may be silent while it has calls, before a keep-alive is sent.
    pub(crate) keepalive: Option<Duration>,
    /// It uses little memory from the start.
    pub(crate) low_memory: bool,
}

/// The incoming Hello of a link.
#[derive(Debug)]
struct Hello {
    stream: StreamId,
    /// The bytes that have arrived.
    bytes: Vec<u8>,
    /// Deadline for its end.
    until: Instant,
}

impl Accepted {
    pub(super) fn new(options: AcceptOptions, now: Instant) -> Self {
        Self {
            caller: options.caller,
            sniff: Sniff::new(),
            idle: IdleState::new(now, options.first_request_by),
            hello: None,
            keepalive: options.keepalive.map(Keepalive::new),
            draining: false,
        }
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.sniff, Sniff::Open(_))
    }

    pub(super) fn identify(&mut self, bytes: &[u8]) -> (Sniff, Sniff) {
        let before = self.sniff;
        self.sniff = before.feed(bytes);
        (before, self.sniff)
    }

    pub(super) fn on_request(&mut self) {
        self.idle.on_request();
    }

    /// A PING was acknowledged.
    pub(crate) fn on_ping_ack(&mut self) {
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.reset();
        }
    }

    /// Adds bytes of the Hello on `stream`. `Some(false)`: it exceeds `most` bytes and was discarded. `None`: there is
    /// no Hello on that stream any more.
    pub(crate) fn push_hello(
        &mut self,
        stream: StreamId,
        data: &[u8],
        most: usize,
    ) -> Option<bool> {
        let hello = self.hello.as_mut().filter(|hello| hello.stream == stream)?;
        if hello.bytes.len() + data.len() > most {
            self.hello = None;
            return Some(false);
        }
        hello.bytes.extend_from_slice(data);
        Some(true)
    }

    /// Its Hello was answered: it is a link.
    pub(crate) fn set_link(&mut self) {
        self.idle.on_hello();
    }

    /// Takes the bytes of a complete Hello.
    pub(crate) fn take_hello(&mut self) -> Option<Vec<u8>> {
        self.hello.take().map(|hello| hello.bytes)
    }
}

impl Conn {
    /// Starts to receive a Hello on `stream`; an earlier one is cancelled.
    pub(crate) fn begin_hello(&mut self, stream: StreamId, until: Instant) {
        self.h2.set_token(stream, HELLO);
        let Side::Accepted(accepted) = &mut self.side else {
            return;
        };
        accepted.on_request();
        let hello = Hello {
            stream,
            bytes: Vec::new(),
            until,
        };
        if let Some(earlier) = accepted.hello.replace(hello) {
            self.h2.reset(earlier.stream, ErrorCode::CANCEL);
        }
    }

    /// Cancels a Hello that has not arrived in time; true if there was one.
    pub(crate) fn cancel_late_hello(&mut self, now: Instant) -> bool {
        let Side::Accepted(accepted) = &mut self.side else {
            return false;
        };
        let Some(hello) = accepted.hello.take_if(|hello| hello.until <= now) else {
            return false;
        };
        self.h2.reset(hello.stream, ErrorCode::CANCEL);
        true
    }

    pub(super) fn accepted_deadline(
        &self,
        accepted: &Accepted,
        keepalive_timeout: Duration,
    ) -> Option<Instant> {
        let keepalive = accepted.keepalive.filter(|_| !self.calls.is_empty());
        let keepalive = keepalive.map(|k| k.deadline(self.last_read, keepalive_timeout));
        let hello = accepted.hello.as_ref().map(|hello| hello.until);
        let first_request = accepted.idle.first_request_by();
        [keepalive, hello, first_request]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns what is due on an accepted connection; a due PING is sent here.
    pub(crate) fn check_accepted(&mut self, timeout: Duration, now: Instant) -> Due {
        let (calls, last_read, ending) = (self.calls.len(), self.last_read, self.is_ending());
        let Side::Accepted(accepted) = &mut self.side else {
            return Due::Nothing;
        };
        let state = match &mut accepted.keepalive {
            Some(keepalive) if calls > 0 => keepalive.check(last_read, timeout, now),
            Some(keepalive) => {
                keepalive.reset();
                KeepaliveState::Alive
            }
            None => KeepaliveState::Alive,
        };
        if !ending && accepted.idle.first_request_by().is_some_and(|by| by <= now) {
            return Due::FirstRequest;
        }
        match state {
            KeepaliveState::Alive => Due::Nothing,
            KeepaliveState::Due => {
                self.h2.ping(PING);
                Due::Nothing
            }
            KeepaliveState::Lost => Due::KeepaliveLost,
        }
    }

    /// Sends a drain's GOAWAY; false if it was sent before, or if the connection was not accepted.
    pub(crate) fn begin_drain(&mut self, now: Instant) -> bool {
        let Side::Accepted(accepted) = &mut self.side else {
            return false;
        };
        if std::mem::replace(&mut accepted.draining, true) {
            return false;
        }
        self.h2.drain(now);
        true
    }

    /// Whether it has no calls left and no new ones can arrive. Opened connections never bring calls.
    pub(crate) fn is_drained(&self, now: Instant) -> bool {
        let Some(accepted) = self.accepted() else {
            return true;
        };
        let ending = self.is_ending();
        let announced = ending || accepted.draining && !self.h2.is_drain_open();
        let idle = ending || self.h2.live_streams() == 0;
        announced && idle && self.h2.output().is_empty()
            || self.is_unknown() && now >= self.last_read + FIRST_BYTES
    }
}
