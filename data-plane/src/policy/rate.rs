//! A token bucket: so many at once, so many more each second. `now` comes in, yes or the time to wait goes out.

use std::time::{Duration, Instant};

/// One bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    burst: u32,
    per_second: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self {
            burst,
            per_second: per_second.max(1),
            tokens: f64::from(burst),
            filled: now,
        }
    }

    /// Takes one token, or says how long until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        let rate = f64::from(self.per_second);
        self.tokens = (self.tokens + elapsed * rate).min(f64::from(self.burst));
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10, start);
        assert_eq!((0..9).filter(|_| bucket.take(start).is_ok()).count(), 3);
        let wait = bucket.take(start).unwrap_err();
        assert!(wait <= Duration::from_millis(101), "{wait:?}");
        assert!(bucket.take(start + wait).is_ok());
        assert!(bucket.take(start + wait).is_err());
    }
}
