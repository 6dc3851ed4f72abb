//! Whether the peer of a silent connection is still there: HTTP/2 PINGs that it has to answer. Times come in, what is to
//! be done goes out; nothing is sent here.

use std::time::{Duration, Instant};

/// What a silent connection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepaliveState {
    Alive,
    /// A PING is to be sent.
    Due,
    /// It has not answered the last PING in time.
    Lost,
}

/// The keepalive of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keepalive {
    /// How long it may be silent while it has calls.
    interval: Duration,
    /// When the PING was sent that has not been answered.
    sent: Option<Instant>,
}

impl Keepalive {
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            sent: None,
        }
    }

    /// When `check` is due. `timeout` is how long an answer may take.
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
            // Any byte shows that the peer is there.
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

    /// The PING was answered, or nobody waits for the answer any more.
    pub(crate) fn reset(&mut self) {
        self.sent = None;
    }
}
