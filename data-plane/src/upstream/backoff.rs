//! How long to wait before dialling again: doubling with jitter. Random numbers come in, durations go out.

use std::time::Duration;

/// After the first failure.
pub const FIRST: Duration = Duration::from_millis(50);
/// The longest wait.
pub const MAX: Duration = Duration::from_secs(3);

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure: how long to wait, between half and all of the doubled time. `random` is in 0..1.
    pub fn fail(&mut self, random: f64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(10)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// A success: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_bound_and_starts_anew() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.fail(1.0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(backoff.fail(0.0).as_millis(), 1500);
        backoff.reset();
        assert_eq!(backoff.fail(0.0).as_millis(), 25);
    }
}
