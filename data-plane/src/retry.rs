//! How long to wait before the control side tries again: doubling, bounded, with jitter, so that a thousand proxies do
//! not come back in one moment. No clock and no timer comes in here.

use std::time::Duration;

use rand::Rng as _;

/// Doubles from `first` to `last`.
#[derive(Clone, Debug)]
pub struct Retry {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Retry {
    #[must_use]
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            next: first,
        }
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.last);
        jittered(wait, 0.6..1.0)
    }

    /// It worked: begin anew next time.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `span` times a random factor of the range.
#[must_use]
pub fn jittered(span: Duration, factor: std::ops::Range<f64>) -> Duration {
    span.mul_f64(rand::rng().random_range(factor))
}

/// Where to begin in a list of `len`, so that not all begin with the first.
#[must_use]
pub fn any_of(len: usize) -> usize {
    rand::rng().random_range(0..len.max(1))
}
