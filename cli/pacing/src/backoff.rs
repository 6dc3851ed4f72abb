//! Exponential backoff with jitter.

use std::ops::Range;
use std::time::Duration;

use rand::Rng as _;

/// The delay before the next attempt. It doubles with each failure, up to a bound. Jitter subtracts up to half of it,
/// so that many clients which failed together do not retry together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` (after the first failure) to `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// The delay after one more failure, with random jitter.
    pub fn fail(&mut self) -> Duration {
        self.fail_with(rand::rng().random())
    }

    /// The delay after one more failure: half of the full delay for a `random` of 0, all of it for 1.
    pub fn fail_with(&mut self, random: f64) -> Duration {
        let full = self.next.min(self.max);
        self.next = (full * 2).min(self.max);
        full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// The delay after one more failure without jitter, for output to users and for reproducible runs.
    pub fn fail_exact(&mut self) -> Duration {
        self.fail_with(1.0)
    }

    /// An attempt succeeded: the delay starts again at `first`.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `first`, doubled this many times, at most `max`.
#[must_use]
pub fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(max)
}

/// `span` times a random factor in `factor`.
#[must_use]
pub fn jittered(span: Duration, factor: Range<f64>) -> Duration {
    span.mul_f64(rand::rng().random_range(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn doubles_up_to_its_bound_and_starts_again_after_a_success() {
        let mut backoff = Backoff::new(MS * 50, MS * 3_000);
        let delays: Vec<u128> = (0..9).map(|_| backoff.fail_exact().as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(backoff.fail_with(0.0), MS * 1_500);
        backoff.reset();
        assert_eq!(backoff.fail_with(0.0), MS * 25);
    }

    #[test]
    fn jitter_stays_between_half_and_all_of_the_delay() {
        let mut backoff = Backoff::new(MS * 200, MS * 2_000);
        assert!((MS * 100..=MS * 200).contains(&backoff.fail()));
        for _ in 0..1_000 {
            assert!((MS * 100..=MS * 2_000).contains(&backoff.fail()));
        }
    }
}
