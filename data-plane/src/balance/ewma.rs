//! Peak EWMA of an endpoint's latency: rises at once with a slow answer, falls slowly with fast ones. Takes `Duration`
//! and `Instant`, gives a cost. Source: Finagle's `PeakEwma`, plus a floor below which only load counts, a least weight
//! of each answer, and an occasional call to an endpoint that gets none any more, so that one slow answer does not keep
//! callers away for long.

use std::time::{Duration, Instant};

/// Time constant of forgetting old answers.
pub const DECAY: Duration = Duration::from_secs(5);
/// Least weight of one answer.
const SHARE: f64 = 0.125;
/// Latencies below this count as equal: between fast endpoints the differences are noise, and calls in flight say more.
pub const FLOOR: Duration = Duration::from_millis(10);
/// An endpoint without a call that has been silent for this many times its latency counts as fast, and so gets a call:
/// only an answer shows whether it is fast again. A caller with one call at a time so loses at most a ninth of its time
/// to a slow endpoint, and each worker has at most one such call in flight to it.
const SILENCE: f64 = 8.0;
/// Least weight of an answer after such a silence, since the estimate is old.
const SHARE_AFTER_SILENCE: f64 = 0.75;
/// Assumed latency of an endpoint that has calls and has not answered yet.
const UNKNOWN: Duration = Duration::from_secs(1);

/// The latency estimate of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeakEwma {
    /// Seconds; 0 until there is a `stamp`.
    value: f64,
    stamp: Option<Instant>,
}

impl PeakEwma {
    /// Adds the latency of one answer.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let sample = latency.as_secs_f64();
        self.value = match self.stamp {
            Some(_) if sample > self.value => sample,
            // Of many answers in one turn only the first needs the decay.
            Some(stamp) if stamp == now => self.value * (1.0 - SHARE) + sample * SHARE,
            Some(stamp) => {
                let elapsed = now.saturating_duration_since(stamp);
                let share = match is_silent(elapsed, self.value) {
                    true => SHARE_AFTER_SILENCE,
                    false => SHARE,
                };
                let keep = decay(elapsed).min(1.0 - share);
                self.value * keep + sample * (1.0 - keep)
            }
            None => sample,
        };
        self.stamp = Some(now);
    }

    /// Adds that an answer takes longer than this, since a call ended without one. A higher estimate stays.
    pub fn at_least(&mut self, waited: Duration, now: Instant) {
        let sample = waited.as_secs_f64();
        let known = match self.stamp {
            Some(stamp) => self.value * decay(now.saturating_duration_since(stamp)),
            // A call that ended right after its start must not make an endpoint without answers count as fast.
            None => FLOOR.as_secs_f64() * 2.0,
        };
        if sample > known {
            self.value = sample;
            self.stamp = Some(now);
        }
    }

    /// The current latency estimate; zero without any answer yet.
    #[must_use]
    pub fn estimate(&self, now: Instant) -> Duration {
        let value = self.stamp.map_or(0.0, |stamp| {
            self.value * decay(now.saturating_duration_since(stamp))
        });
        Duration::try_from_secs_f64(value).unwrap_or_default()
    }

    /// The cost of one more call on an endpoint with this weight and `pending` calls. Without any answer yet, or after
    /// a long silence, it is low while the endpoint is idle (one call measures it). Without any answer it is high once
    /// it has calls. Idle endpoints of equal latency cost the same whatever their weight, otherwise few callers would
    /// never call those with less weight.
    #[must_use]
    pub fn cost(&self, pending: u32, weight: u32, now: Instant) -> f64 {
        let latency = match self.stamp {
            None if pending == 0 => FLOOR.as_secs_f64(),
            None => UNKNOWN.as_secs_f64(),
            // The estimate only falls with time, and below the floor all latencies are equal: no need to compute it.
            Some(_) if self.value <= FLOOR.as_secs_f64() => FLOOR.as_secs_f64(),
            Some(stamp) => {
                let elapsed = now.saturating_duration_since(stamp);
                match pending == 0 && is_silent(elapsed, self.value) {
                    true => FLOOR.as_secs_f64(),
                    false => (self.value * decay(elapsed)).max(FLOOR.as_secs_f64()),
                }
            }
        };
        latency * (f64::from(pending) / f64::from(weight.max(1)) + 1.0)
    }
}

fn is_silent(elapsed: Duration, latency: f64) -> bool {
    elapsed.as_secs_f64() > latency * SILENCE
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_slowly() {
        let start = Instant::now();
        let mut ewma = PeakEwma::default();
        ewma.observe(ms(10), start);
        ewma.observe(ms(500), start + ms(1));
        assert!(ewma.cost(0, 1, start + ms(1)) > 0.49);
        ewma.observe(ms(480), start + ms(2));
        assert!(
            ewma.cost(0, 1, start + ms(2)) > 0.49,
            "one faster answer changes little"
        );
        let later = start + DECAY * 3;
        assert!(
            ewma.cost(0, 1, later) < 0.05,
            "after three time constants it is nearly gone"
        );
    }

    #[test]
    fn a_call_without_an_answer_says_how_slow_the_endpoint_is_at_least() {
        let now = Instant::now();
        let mut ewma = PeakEwma::default();
        ewma.at_least(ms(5), now);
        assert_eq!(ewma.estimate(now), Duration::ZERO, "hardly begun");
        ewma.at_least(ms(250), now);
        assert_eq!(ewma.estimate(now), ms(250));
        ewma.at_least(ms(100), now);
        assert_eq!(ewma.estimate(now), ms(250), "it was known to be slower");
        ewma.at_least(ms(100), now + DECAY);
        assert_eq!(
            ewma.estimate(now + DECAY),
            ms(100),
            "and is forgotten as an answer is"
        );
    }

    #[test]
    fn load_multiplies_the_cost() {
        let now = Instant::now();
        let mut ewma = PeakEwma::default();
        ewma.observe(ms(20), now);
        let idle = ewma.cost(0, 1, now);
        assert!((ewma.cost(3, 1, now) - idle * 4.0).abs() < 1e-9);
    }

    #[test]
    fn differences_below_the_floor_are_none() {
        let now = Instant::now();
        let (mut a, mut b) = (PeakEwma::default(), PeakEwma::default());
        a.observe(Duration::from_micros(90), now);
        b.observe(Duration::from_micros(7_000), now);
        assert!((a.cost(0, 1, now) - b.cost(0, 1, now)).abs() < f64::EPSILON);
    }

    #[test]
    fn an_unmeasured_endpoint_gets_one_call_to_find_out() {
        let now = Instant::now();
        let mut slow = PeakEwma::default();
        slow.observe(ms(50), now);
        let fresh = PeakEwma::default();
        assert!(fresh.cost(0, 1, now) < slow.cost(0, 1, now));
        assert!(fresh.cost(1, 1, now) > slow.cost(1, 1, now));
    }
}
