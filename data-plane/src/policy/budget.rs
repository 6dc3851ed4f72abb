//! The retry budget of one service: retries may add a fifth to its calls, plus ten per second, so that retries never
//! multiply an outage. A budget instead of a count per call, because only the sum of all retries can harm a service.
//! Source: Finagle's `RetryBudget`.

use std::time::{Duration, Instant};

/// What each call adds, in thousandths of a retry: 20 %.
const PER_CALL: u64 = 200;
/// What one retry costs, in thousandths of a retry.
const PER_RETRY: u64 = 1_000;
/// Unused budget is kept for one to two of these windows.
const WINDOW: Duration = Duration::from_secs(10);

/// Budget of one service on one worker.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    /// Constant rate besides the share of the calls, in thousandths of a retry per second.
    per_second: u64,
    balance: u64,
    /// What calls added in this window and the last one; limits the balance.
    deposits: [u64; 2],
    window_end: Instant,
    accrued: Instant,
}

impl RetryBudget {
    /// A budget with `per_second` thousandths of a retry per second (10,000 for the whole node).
    #[must_use]
    pub fn new(per_second: u64, now: Instant) -> Self {
        Self {
            per_second,
            balance: per_second,
            deposits: [0, 0],
            window_end: now + WINDOW,
            accrued: now,
        }
    }

    /// Adds the part of one call, at its start.
    pub fn deposit(&mut self, now: Instant) {
        self.roll(now);
        let [_, current] = &mut self.deposits;
        *current += PER_CALL;
        self.balance += PER_CALL;
    }

    /// Takes one retry; false if the budget is used up.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        self.roll(now);
        let elapsed = now.saturating_duration_since(self.accrued);
        let earned = u64::try_from(elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(self.per_second)
            / 1_000;
        if earned > 0 {
            self.accrued = now;
            self.balance = self.balance.saturating_add(earned);
        }
        let kept = self
            .deposits
            .iter()
            .sum::<u64>()
            .saturating_add(self.per_second * WINDOW.as_secs());
        self.balance = self.balance.min(kept);
        match self.balance.checked_sub(PER_RETRY) {
            Some(rest) => {
                self.balance = rest;
                true
            }
            None => false,
        }
    }

    fn roll(&mut self, now: Instant) {
        if now < self.window_end {
            return;
        }
        let [_, current] = self.deposits;
        self.deposits = if now < self.window_end + WINDOW {
            [current, 0]
        } else {
            [0, 0]
        };
        self.window_end = now + WINDOW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(budget: &mut RetryBudget, now: Instant) -> u32 {
        (0..)
            .take_while(|_| budget.withdraw(now))
            .count()
            .try_into()
            .unwrap()
    }

    #[test]
    fn ten_a_second_and_a_fifth_of_the_calls() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(10_000, start);
        assert_eq!(drain(&mut budget, start), 10, "a first second's worth");
        let second = start + Duration::from_secs(1);
        assert_eq!(drain(&mut budget, second), 10);
        for _ in 0..100 {
            budget.deposit(second);
        }
        assert_eq!(drain(&mut budget, second), 20);
    }

    #[test]
    fn savings_are_bounded() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(10_000, start);
        for _ in 0..10_000 {
            budget.deposit(start);
        }
        let hour = start + Duration::from_secs(3600);
        assert_eq!(
            drain(&mut budget, hour),
            100,
            "ten seconds of the steady rate, nothing of old calls"
        );
    }
}
