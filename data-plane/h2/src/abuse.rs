//! Limits on what a peer can make us do for nothing: token buckets for resets and control frames
//! (RFC 9113 §10.5). A frame costs tokens; when they run out, the connection ends with
//! ENHANCE_YOUR_CALM. Ordinary traffic earns tokens, so that a long honest connection is never
//! closed for its age. Takes costs and `now`; knows no frames.

use std::time::Instant;

use crate::settings::Rate;

/// SETTINGS parameters in one frame.
pub(crate) const SETTINGS_PER_FRAME: u32 = 32;
/// What a useful frame earns for control frames: a HEADERS or DATA frame may well be answered by
/// a WINDOW_UPDATE for the stream, one for the connection, and a PING that measures.
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

/// A stream that its client resets after so many milliseconds, or after it was answered in part,
/// is an ordinary cancel: a deadline, a hedged request, a user who left. Younger ones are what a
/// rapid reset attack (CVE-2023-44487) is made of: they escape the bound of concurrent streams,
/// while a client that lets each live this long is held by it.
const SETTLED_MS: u32 = 25;
/// So many resets of streams that had hardly begun are paid for by one stream that was completed:
/// of a request that is hedged four times, four of five attempts are reset.
const RESETS_PER_COMPLETED: i32 = 4;
/// The cost of one reset at once.
const FULL_COST: i32 = SETTLED_MS as i32;

/// Resets by a client. What one costs is the part of [`SETTLED_MS`] that its stream did not live.
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

    /// A stream without any answer was reset after `age_ms`; false when it was one too many.
    pub(crate) fn unanswered(&mut self, age_ms: u32, now: Instant) -> bool {
        let missing = SETTLED_MS.saturating_sub(age_ms);
        self.bucket
            .take(i32::try_from(missing).unwrap_or(FULL_COST), now)
    }

    /// A stream over the limit was refused, which costs us as much as one that is reset at once.
    pub(crate) fn refused(&mut self, now: Instant) -> bool {
        self.bucket.take(FULL_COST, now)
    }

    /// Both halves of a stream have ended as they should.
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
    /// RST_STREAM that the peer's errors drew from us.
    pub(crate) provoked: Bucket,
    /// Everything else that carries no message.
    pub(crate) control: Bucket,
}
