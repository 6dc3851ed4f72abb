//! Bounds on what a peer can make us do for nothing: token buckets over resets and control frames
//! (RFC 9113 §10.5). Frames come in as costs and `now`; "enough" goes out, and the connection ends
//! with ENHANCE_YOUR_CALM. Ordinary traffic earns what it uses, so a long honest connection is
//! never cut for its age. Frames themselves may not come in.

use std::time::Instant;

use crate::settings::Rate;

/// SETTINGS parameters in one frame.
pub(crate) const SETTINGS_PER_FRAME: u32 = 32;
/// What a useful frame earns for control frames: a HEADERS or DATA frame may well be answered by
/// a WINDOW_UPDATE for the stream, one for the connection, and a PING that measures.
const EARNED: i32 = 4;

/// So many at once, and so many more each second.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: i32,
    burst: i32,
    per_second: u32,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        let burst = i32::try_from(rate.burst).unwrap_or(i32::MAX);
        Self {
            tokens: burst,
            burst,
            per_second: rate.per_second,
            filled: now,
        }
    }

    /// Pays; false when there is not enough. Time is only looked at when the bucket is empty, so
    /// a busy honest peer costs a subtraction.
    #[inline]
    pub(crate) fn take(&mut self, cost: i32, now: Instant) -> bool {
        if self.tokens < cost {
            self.fill(now);
            if self.tokens < cost {
                return false;
            }
        }
        self.tokens -= cost;
        true
    }

    /// Useful traffic came by.
    #[inline]
    pub(crate) fn earn(&mut self) {
        self.tokens = self.tokens.saturating_add(EARNED).min(self.burst);
    }

    #[cold]
    fn fill(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.filled).as_millis();
        let tokens = millis.saturating_mul(u128::from(self.per_second)) / 1000;
        if tokens > 0 {
            let tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
            self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
            self.filled = now;
        }
    }
}

/// All buckets of a connection.
#[derive(Debug)]
pub(crate) struct Abuse {
    /// RST_STREAM received.
    pub(crate) resets: Bucket,
    /// RST_STREAM that the peer's errors drew from us.
    pub(crate) provoked: Bucket,
    /// Everything else that carries no message.
    pub(crate) control: Bucket,
}
