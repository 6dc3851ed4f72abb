//! Limits on what a peer can make us do for nothing: token buckets for resets and control frames
//! (RFC 9113 §10.5). A frame costs tokens; when they run out, the connection ends with
//! ENHANCE_YOUR_CALM. Ordinary traffic earns tokens, so that a long honest connection is never
//! closed for its age. Takes costs and `now`; knows no frames.

use std::time::Instant;

use crate::settings::Rate;

/// SETTINGS parameters in one frame.
pub(crate) const SETTINGS_PER_FRAME: u32 = 32;
/// Control frames that a useful frame earns: the answer to a HEADERS or DATA frame may include a
/// WINDOW_UPDATE for the stream, one for the connection, and a PING that measures.
const EARNED: i32 = 4;

/// A token bucket.
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

    /// Takes tokens; false if there are too few. Time is used only when the bucket is empty, so a
    /// busy honest peer costs one subtraction.
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

    /// A useful frame was received or sent.
    #[inline]
    pub(crate) fn earn(&mut self) {
        self.add(EARNED);
    }

    #[inline]
    fn add(&mut self, tokens: i32) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
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

/// A stream that its client resets after this many milliseconds, or after part of the response, is
/// an ordinary cancel: a deadline, a hedged request, a user who left. Resets of younger streams are
/// the rapid reset attack (CVE-2023-44487): they bypass the limit of concurrent streams, which
/// holds a client that lets each stream live this long.
const SETTLED_MS: u32 = 25;
/// One completed stream pays for this many resets of young streams: of a request that is hedged
/// four times, four of five attempts are reset.
const RESETS_PER_COMPLETED: i32 = 4;
/// The cost of an immediate reset.
const FULL_COST: i32 = SETTLED_MS as i32;

/// Resets by a client. A reset costs what its stream's age lacks to [`SETTLED_MS`].
#[derive(Debug)]
pub(crate) struct Resets {
    bucket: Bucket,
}

impl Resets {
    /// `rate` counts streams that are reset at once.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        let rate = Rate {
            burst: rate.burst.saturating_mul(SETTLED_MS),
            per_second: rate.per_second.saturating_mul(SETTLED_MS),
        };
        Self {
            bucket: Bucket::new(rate, now),
        }
    }

    /// A stream without any answer was reset after `age_ms`; false if that exceeds the limit.
    pub(crate) fn unanswered(&mut self, age_ms: u32, now: Instant) -> bool {
        let missing = SETTLED_MS.saturating_sub(age_ms);
        self.bucket
            .take(i32::try_from(missing).unwrap_or(FULL_COST), now)
    }

    /// A stream over the limit was refused, which costs as much as an immediate reset.
    pub(crate) fn refused(&mut self, now: Instant) -> bool {
        self.bucket.take(FULL_COST, now)
    }

    /// A stream was completed: both halves ended normally.
    #[inline]
    pub(crate) fn completed(&mut self) {
        self.bucket.add(RESETS_PER_COMPLETED * FULL_COST);
    }
}

/// All buckets of a connection.
#[derive(Debug)]
pub(crate) struct Abuse {
    /// RST_STREAM received, and streams refused.
    pub(crate) resets: Resets,
    /// RST_STREAM frames that we sent because of the peer's errors.
    pub(crate) provoked: Bucket,
    /// Everything else that carries no message.
    pub(crate) control: Bucket,
}
