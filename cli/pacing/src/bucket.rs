//! A token bucket, stored as one instant (the generic cell rate algorithm): the time at which all tokens taken so far
//! will have been earned.

use std::time::{Duration, Instant};

/// Allows a burst of tokens after a quiet time, and then a rate per second.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    per_token: Duration,
    burst: Duration,
    /// When all tokens taken so far have been earned.
    earned_at: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens that earns `per_second` tokens, at least one.
    #[must_use]
    pub fn new(burst: u32, per_second: u32) -> Self {
        let per_token = Duration::from_secs(1) / per_second.max(1);
        Self {
            per_token,
            burst: per_token.saturating_mul(burst),
            earned_at: None,
        }
    }

    /// Takes tokens, in advance if needed. Returns how long the caller must wait for them.
    pub fn take(&mut self, now: Instant, tokens: u32) -> Duration {
        let (earned_at, wait) = self.cost(now, tokens);
        self.earned_at = Some(earned_at);
        wait
    }

    /// Takes tokens if the wait for them is at most `max`, and returns the wait. Otherwise takes nothing, and the error
    /// is the wait.
    pub fn take_within(
        &mut self,
        now: Instant,
        tokens: u32,
        max: Duration,
    ) -> Result<Duration, Duration> {
        let (earned_at, wait) = self.cost(now, tokens);
        if wait > max {
            return Err(wait);
        }
        self.earned_at = Some(earned_at);
        Ok(wait)
    }

    /// Takes one token if there is one now; the error is the time until there is.
    pub fn try_take(&mut self, now: Instant) -> Result<(), Duration> {
        self.take_within(now, 1, Duration::ZERO).map(drop)
    }

    fn cost(&self, now: Instant, tokens: u32) -> (Instant, Duration) {
        let from = self.earned_at.map_or(now, |at| at.max(now));
        let earned_at = from + self.per_token.saturating_mul(tokens);
        let wait = earned_at
            .saturating_duration_since(now)
            .saturating_sub(self.burst);
        (earned_at, wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_passes_and_then_a_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, 100);
        let waits: Vec<_> = (0..5).map(|_| bucket.take(start, 1)).collect();
        assert_eq!(waits, [0, 0, 0, 10, 20].map(|each| MS * each));
        let later = start + MS * 1_000;
        let waits: Vec<_> = (0..4).map(|_| bucket.take(later, 1)).collect();
        assert_eq!(
            waits,
            [0, 0, 0, 10].map(|each| MS * each),
            "a quiet second earns no more than a burst"
        );
        assert_eq!(bucket.take_within(later, 1, MS * 15), Err(MS * 20));
        assert_eq!(
            bucket.take_within(later, 1, MS * 20),
            Ok(MS * 20),
            "a refusal costs nothing"
        );
    }

    #[test]
    fn an_empty_bucket_says_when_there_is_a_token() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, 10);
        assert_eq!((0..9).filter(|_| bucket.try_take(start).is_ok()).count(), 3);
        let wait = bucket.try_take(start).unwrap_err();
        assert_eq!(wait, MS * 100);
        assert!(bucket.try_take(start + wait).is_ok());
        assert!(bucket.try_take(start + wait).is_err());
    }
}
