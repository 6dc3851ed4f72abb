//! Whether the peer of a silent connection is still alive, by HTTP/2 PINGs that it has to answer. Takes times, says
//! what to do; sends nothing itself.

use std::time::{Duration, Instant};

/// What to do about a silent connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepaliveState {
    Alive,
    /// A PING has to be sent.
    Due,
    /// The last PING was not answered in time.
    Lost,
}

/// The keep-alive of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keepalive {
    /// How long it may be silent while it has calls.
    interval: Duration,
    /// When the unanswered PING was sent.
    sent: Option<Instant>,
}

impl Keepalive {
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            sent: None,
        }
    }

    /// When `check` is due. An answer may take `timeout`.
    pub(crate) fn deadline(&self, last_read: Instant, timeout: Duration) -> Instant {
        match self.sent {
            Some(sent) => sent + timeout,
            None => last_read + self.interval,
        }
    }

    pub(crate) fn check(
        &mut self,
        last_read: Instant,
        timeout: Duration,
        now: Instant,
    ) -> KeepaliveState {
        match self.sent {
            // Any byte shows that the peer is alive.
            Some(sent) if last_read > sent => self.sent = None,
            Some(sent) if sent + timeout <= now => return KeepaliveState::Lost,
            None if last_read + self.interval <= now => {
                self.sent = Some(now);
                return KeepaliveState::Due;
            }
            _ => {}
        }
        KeepaliveState::Alive
    }

    /// The PING was answered, or its answer no longer matters.
    pub(crate) fn reset(&mut self) {
        self.sent = None;
    }
}
