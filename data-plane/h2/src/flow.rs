//! Flow-control windows (RFC 9113 §5.2, §6.9): how much may still be sent, how much the peer may
//! still send, and how far its window should grow. Streams and the connection use the same types.
//! Only numbers, no frames.

use std::time::{Duration, Instant};

use crate::frame::MAX_31;

/// What we may still send. Negative after the peer lowered its initial window (§6.9.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendWindow(i32);

/// A window would pass 2^31-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

impl SendWindow {
    pub(crate) fn new(bytes: u32) -> Self {
        Self(i32::try_from(bytes).unwrap_or(i32::MAX))
    }

    /// How many bytes may be sent now.
    #[inline]
    pub(crate) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Bytes were sent; no more than `available`.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) {
        self.0 = self
            .0
            .saturating_sub(i32::try_from(bytes).unwrap_or(i32::MAX));
    }

    /// The peer gave more by WINDOW_UPDATE.
    #[inline]
    pub(crate) fn give(&mut self, bytes: u32) -> Result<(), Overflow> {
        self.shift(i64::from(bytes))
    }

    /// The peer's initial window changed by so much.
    #[inline]
    pub(crate) fn shift(&mut self, by: i64) -> Result<(), Overflow> {
        self.0 = i32::try_from(i64::from(self.0) + by).map_err(|_| Overflow)?;
        Ok(())
    }
}

/// What the peer may still send, and what was received and not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecvWindow {
    /// What the peer may still send. Negative after we lowered the initial window.
    left: i32,
    /// Received and not released.
    unreleased: u32,
    /// `left` plus `unreleased` at the last WINDOW_UPDATE.
    top: u32,
    /// Released since then.
    released: u32,
}

impl RecvWindow {
    pub(crate) fn new(bytes: u32) -> Self {
        Self {
            left: i32::try_from(bytes).unwrap_or(i32::MAX),
            unreleased: 0,
            top: bytes,
            released: 0,
        }
    }

    /// Bytes were received. False, without effect: more than the peer may send.
    #[inline]
    pub(crate) fn take(&mut self, bytes: u32) -> bool {
        match i32::try_from(bytes) {
            Ok(bytes) if bytes <= self.left => self.left -= bytes,
            // An empty frame is legal whatever the window.
            Ok(0) => {}
            _ => return false,
        }
        self.unreleased += bytes;
        true
    }

    /// Bytes were forwarded. Returns the increment for a WINDOW_UPDATE if half the window was used: it
    /// brings the window to `target`.
    #[inline]
    pub(crate) fn release(&mut self, bytes: usize, target: u32) -> Option<u32> {
        let bytes = u32::try_from(bytes)
            .unwrap_or(u32::MAX)
            .min(self.unreleased);
        self.unreleased -= bytes;
        self.released = self.released.saturating_add(bytes);
        if self.released < self.top / 2 {
            return None;
        }
        let room = i64::from(target) - i64::from(self.unreleased) - i64::from(self.left);
        let increment = u32::try_from(room.min(i64::from(MAX_31))).ok()?;
        if increment == 0 {
            return None;
        }
        self.left = i32::try_from(i64::from(self.left) + i64::from(increment)).ok()?;
        self.top = target;
        self.released = 0;
        Some(increment)
    }

    /// Our own initial window became smaller, and the peer knows now (§6.9.2).
    pub(crate) fn lower(&mut self, by: u32) {
        self.left = self
            .left
            .saturating_sub(i32::try_from(by).unwrap_or(i32::MAX));
        self.top = self.top.saturating_sub(by);
    }

    #[cfg(test)]
    pub(crate) fn left(&self) -> i64 {
        i64::from(self.left)
    }

    #[cfg(test)]
    pub(crate) fn unreleased(&self) -> u32 {
        self.unreleased
    }
}

/// Measures with a PING how much data one round trip carries, and detects windows that are too
/// small. A probe starts only when a stream has used half its window, so small calls cause no PING,
/// and every PING follows DATA (gRPC servers count other PINGs as abuse).
#[derive(Debug, Default)]
pub(crate) struct Probe {
    stream: u32,
    stream_bytes: u64,
    connection_bytes: u64,
    not_before: Option<Instant>,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grown {
    pub(crate) stream_target: u32,
    pub(crate) connection_target: u32,
}

/// Current targets and how far they may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) stream: u32,
    pub(crate) max_stream: u32,
    pub(crate) connection: u32,
    pub(crate) max_connection: u32,
}

/// The pause after a probe that found the windows large enough.
const CALM: Duration = Duration::from_secs(1);

impl Probe {
    /// Whether to send a PING now; the round trip then starts.
    pub(crate) fn start(&mut self, stream: u32, targets: &Targets, now: Instant) -> bool {
        let at_most =
            targets.stream >= targets.max_stream && targets.connection >= targets.max_connection;
        if self.stream != 0 || at_most || self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        (self.stream, self.stream_bytes, self.connection_bytes) = (stream, 0, 0);
        true
    }

    /// DATA was received.
    #[inline]
    pub(crate) fn count(&mut self, stream: u32, bytes: u32) {
        if self.stream != 0 {
            self.connection_bytes += u64::from(bytes);
            if self.stream == stream {
                self.stream_bytes += u64::from(bytes);
            }
        }
    }

    /// The PING was answered. Credit is sent in halves of a window, so a sender that is limited by the
    /// window sends at least half of it in a round trip. Then the window is doubled.
    pub(crate) fn finish(&mut self, targets: &Targets, now: Instant) -> Option<Grown> {
        if self.stream == 0 {
            return None;
        }
        self.stream = 0;
        let grow = |bytes: u64, now: u32, max: u32| match bytes * 2 >= u64::from(now) {
            true => now.saturating_mul(2).min(max).max(now),
            false => now,
        };
        let grown = Grown {
            stream_target: grow(self.stream_bytes, targets.stream, targets.max_stream),
            connection_target: grow(
                self.connection_bytes,
                targets.connection,
                targets.max_connection,
            ),
        };
        if (grown.stream_target, grown.connection_target) == (targets.stream, targets.connection) {
            self.not_before = Some(now + CALM);
            return None;
        }
        Some(grown)
    }
}
