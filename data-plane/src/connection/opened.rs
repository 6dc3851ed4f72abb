//! State of a connection that was opened for a pool: its progress, whether it takes calls, its keep-alive and its
//! waiting cancels. Takes events of the connection; the pool decides which calls use it.

use std::time::{Duration, Instant};

use heddle_h2::ErrorCode;

use super::cancels::Cancels;
use super::conn::{Conn, Due, PING, Side};
use super::keepalive::{Keepalive, KeepaliveState};
use crate::keys::PoolKey;

/// An opened connection.
#[derive(Debug)]
pub(crate) struct Opened {
    pool: PoolKey,
    /// The peer is another proxy.
    link: bool,
    state: OpenState,
    /// Cancels of calls, which are not all sent at once.
    pub(super) cancels: Cancels,
    pub(super) keepalive: Keepalive,
    /// Since when it has had no call.
    idle_since: Instant,
    /// The code of the GOAWAY that it received.
    goaway: Option<ErrorCode>,
    /// It takes no new calls, because of a GOAWAY or because it is not needed any more.
    leaving: bool,
}

/// Progress of opening it, with the deadline of the next step.
#[derive(Debug)]
pub(crate) enum OpenState {
    /// The transport's handshake is not complete: the socket is being connected.
    Connecting(Instant),
    /// Waits for the server's settings.
    Settings(Instant),
    /// A link that waits for the answer to its Hello, with the bytes of the answer so far.
    Hello(Instant, Vec<u8>),
    Ready,
}

/// Effect of the end of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamEnd {
    pub(crate) pool: PoolKey,
    /// It was the last call of a connection that takes no new ones.
    pub(crate) last: bool,
}

impl Opened {
    /// A connection whose socket must be connected by `until`.
    pub(crate) fn new(
        pool: PoolKey,
        link: bool,
        keepalive: Duration,
        until: Instant,
        now: Instant,
    ) -> Self {
        Self {
            pool,
            link,
            state: OpenState::Connecting(until),
            cancels: Cancels::new(now),
            keepalive: Keepalive::new(keepalive),
            idle_since: now,
            goaway: None,
            leaving: false,
        }
    }

    pub(crate) fn pool(&self) -> PoolKey {
        self.pool
    }

    pub(crate) fn is_link(&self) -> bool {
        self.link
    }

    pub(crate) fn state(&self) -> &OpenState {
        &self.state
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, OpenState::Ready)
    }

    pub(crate) fn await_settings(&mut self, until: Instant) {
        self.state = OpenState::Settings(until);
    }

    pub(crate) fn await_hello(&mut self, until: Instant) {
        self.state = OpenState::Hello(until, Vec::new());
    }

    /// Adds bytes of the answer to Hello. Beyond `most` bytes the answer is invalid anyway, so the rest is not kept.
    pub(crate) fn push_hello(&mut self, data: &[u8], most: usize) {
        if let OpenState::Hello(_, bytes) = &mut self.state
            && bytes.len() + data.len() <= most
        {
            bytes.extend_from_slice(data);
        }
    }

    pub(crate) fn become_ready(&mut self, now: Instant) {
        self.state = OpenState::Ready;
        self.idle_since = now;
    }

    /// The connection takes no new calls from now on.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    pub(crate) fn on_goaway(&mut self, code: ErrorCode) {
        self.leaving = true;
        self.goaway = Some(code);
    }

    pub(crate) fn goaway(&self) -> Option<ErrorCode> {
        self.goaway
    }
}

impl Conn {
    /// Whether the peer is another proxy.
    pub(crate) fn is_link(&self) -> bool {
        self.opened().is_some_and(Opened::is_link)
    }

    /// Whether another call may be sent on it now. Not while the server leaves much unread: header lists are not
    /// subject to flow control, so the call waits for room here or uses another connection.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        let limit = self.h2.peer_stream_limit();
        let ready = self.opened().is_some_and(|opened| {
            opened.is_ready() && !opened.leaving && !opened.cancels.is_burdened(limit)
        });
        ready && !self.is_ending() && self.h2.open_slots() > 0 && self.h2.has_output_room()
    }

    /// Whether only unread output keeps it from taking another call.
    pub(crate) fn is_blocked_by_output(&self) -> bool {
        self.h2.open_slots() > 0 && !self.h2.has_output_room()
    }

    /// The server's limit of streams.
    pub(crate) fn stream_limit(&self) -> u32 {
        self.h2.peer_stream_limit()
    }

    /// The pool whose calls may wait because the server leaves much unread.
    pub(crate) fn full_for(&self) -> Option<PoolKey> {
        let pool = self.pool()?;
        (!self.h2.has_output_room()).then_some(pool)
    }

    /// A stream of an opened connection has ended.
    pub(crate) fn on_stream_end(&mut self, now: Instant) -> Option<StreamEnd> {
        let empty = self.calls.is_empty();
        let limit = self.h2.peer_stream_limit();
        let opened = self.opened_mut()?;
        if empty {
            opened.idle_since = now;
            opened.keepalive.reset();
        }
        let leaving = opened.leaving || opened.cancels.is_burdened(limit);
        Some(StreamEnd {
            pool: opened.pool,
            last: empty && leaving,
        })
    }

    pub(super) fn opened_deadline(
        &self,
        opened: &Opened,
        idle: Duration,
        keepalive_timeout: Duration,
    ) -> Instant {
        let state = match opened.state {
            OpenState::Connecting(until)
            | OpenState::Settings(until)
            | OpenState::Hello(until, _) => until,
            OpenState::Ready if self.calls.is_empty() => opened.idle_since + idle,
            OpenState::Ready => opened.keepalive.deadline(self.last_read, keepalive_timeout),
        };
        opened.cancels.due().map_or(state, |at| at.min(state))
    }

    /// Returns what is due on an opened connection; a due PING is sent here.
    pub(crate) fn check_opened(&mut self, idle: Duration, timeout: Duration, now: Instant) -> Due {
        let (calls, last_read) = (self.calls.len(), self.last_read);
        let Side::Opened(opened) = &mut self.side else {
            return Due::Nothing;
        };
        match opened.state {
            OpenState::Connecting(until) if until <= now => Due::Connect,
            OpenState::Settings(until) | OpenState::Hello(until, _) if until <= now => Due::Ready,
            OpenState::Ready if calls == 0 && opened.idle_since + idle <= now => Due::Idle,
            OpenState::Ready if calls > 0 => {
                match opened.keepalive.check(last_read, timeout, now) {
                    KeepaliveState::Alive => Due::Nothing,
                    KeepaliveState::Due => {
                        self.h2.ping(PING);
                        Due::Nothing
                    }
                    KeepaliveState::Lost => Due::KeepaliveLost,
                }
            }
            _ => Due::Nothing,
        }
    }
}
