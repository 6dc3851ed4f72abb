//! What is kept of a connection that was opened for a pool: how far it has come, whether it takes calls, its keepalive
//! and the cancels that wait. Events of the connection come in; which call it is for is decided by its pool.

use std::time::{Duration, Instant};

use heddle_h2::ErrorCode;

use super::cancels::Cancels;
use super::conn::{Conn, Due, PING, Side};
use super::keepalive::{Keepalive, KeepaliveState};
use crate::keys::PoolKey;

/// A connection that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pool: PoolKey,
    /// The peer is another proxy.
    link: bool,
    state: OpenState,
    /// Cancels of calls, which are not all sent at once.
    pub(super) cancels: Cancels,
    pub(super) keepalive: Keepalive,
    /// Since when it has no call.
    idle_since: Instant,
    /// What its GOAWAY said.
    goaway: Option<ErrorCode>,
    /// It takes no new calls: GOAWAY, or it is not needed any more.
    leaving: bool,
}

/// How far it has come, and when the next step is to be done.
#[derive(Debug)]
pub(crate) enum OpenState {
    /// The transport's handshake is not done: the socket is being connected.
    Connecting(Instant),
    /// Waits for the server's settings.
    Settings(Instant),
    /// A link that waits for the answer to its Hello: the bytes of the answer so far.
    Hello(Instant, Vec<u8>),
    Ready,
}

/// What the end of a stream leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamEnd {
    pub(crate) pool: PoolKey,
    /// It was the last call of a connection that takes no more.
    pub(crate) last: bool,
}

impl Opened {
    /// One whose socket is to be connected at `until`.
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

    /// Bytes of the answer to Hello. Of more than `most` the rest is not needed to tell that it is wrong.
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

    /// Takes no new calls from now on.
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

    /// Whether another call may be sent on it now. Not while the server leaves much unread: a header list is held back
    /// by no window, so the call waits for room here, or goes over another connection.
    pub(crate) fn has_room(&self) -> bool {
        let limit = self.h2.peer_stream_limit();
        let ready = self.opened().is_some_and(|opened| {
            opened.is_ready() && !opened.leaving && !opened.cancels.is_burdened(limit)
        });
        ready && !self.is_ending() && self.h2.open_slots() > 0 && self.h2.has_output_room()
    }

    /// Whether only what the server leaves unread keeps it from taking another call.
    pub(crate) fn is_held_by_output(&self) -> bool {
        self.h2.open_slots() > 0 && !self.h2.has_output_room()
    }

    /// How many streams the server allows.
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

    /// What is due on an opened connection; a PING is sent here.
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
