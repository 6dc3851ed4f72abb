//! Whether the store answers this replica, according to its last requests. After an outage, nodes are not expired for a
//! while, because they could not renew their leases during it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::store::StoreError;

/// After an outage of at least half a TTL, in which leases may have expired, expiry is suspended for a whole TTL.
/// Shorter outages within that TTL extend the suspension, but to at most this many TTLs of time in which the store did
/// answer: otherwise one error per TTL would keep dead nodes in use indefinitely.
const LONGEST_SUSPENSION: u32 = 2;

#[derive(Debug, Default)]
struct State {
    away_since: Option<Instant>,
    suspension: Option<Suspension>,
}

/// The suspension of expiry after an outage, extended by short outages that followed.
#[derive(Clone, Copy, Debug)]
struct Suspension {
    /// When the first outage ended.
    since: Instant,
    /// The total time since then in which the store did not answer.
    away: Duration,
    /// When the last outage ended.
    back: Instant,
}

impl Suspension {
    fn ends(&self, ttl: Duration) -> Instant {
        (self.back + ttl).min(self.since + self.away + ttl * LONGEST_SUSPENSION)
    }

    /// This suspension, extended by an outage that began during it.
    fn after(self, outage: Duration, now: Instant) -> Self {
        Self {
            away: self.away + outage,
            back: now,
            ..self
        }
    }
}

impl State {
    /// The suspension that results from an outage from `since` to `now`.
    fn suspended_after(&self, since: Instant, now: Instant, ttl: Duration) -> Suspension {
        let outage = now.saturating_duration_since(since);
        let running = self
            .suspension
            .filter(|suspension| since < suspension.ends(ttl));
        match running {
            Some(suspension) if outage < ttl / 2 => suspension.after(outage, now),
            _ => Suspension {
                since: now,
                away: Duration::ZERO,
                back: now,
            },
        }
    }
}

#[derive(Debug, Default)]
pub(in crate::registry) struct StoreHealth(Mutex<State>);

impl StoreHealth {
    /// Reports the result of a request. `ttl` is the TTL of node leases.
    pub(in crate::registry) fn on_result<T>(&self, result: &Result<T, StoreError>, ttl: Duration) {
        let mut state = self.lock();
        match result {
            Err(StoreError::Unavailable { cause }) if state.away_since.is_none() => {
                tracing::warn!(
                    event = "store-away",
                    cause,
                    "the store does not answer; serving with the last known state"
                );
                state.away_since = Some(Instant::now());
            }
            Err(StoreError::Unavailable { .. } | StoreError::Closed) => {}
            _ => {
                if let Some(since) = state.away_since.take() {
                    let away = since.elapsed();
                    tracing::info!(event = "store-back", ?away, "the store answers again");
                    state.suspension = Some(state.suspended_after(since, Instant::now(), ttl));
                }
            }
        }
    }

    /// How long the store has not answered; none if it answers.
    pub(in crate::registry) fn away(&self) -> Option<Duration> {
        Some(self.lock().away_since?.elapsed())
    }

    /// No node may be expired before this time, because nodes could not renew their leases while the store did not
    /// answer.
    pub(in crate::registry) fn expire_from(&self, ttl: Duration) -> Option<Instant> {
        let state = self.lock();
        let suspension = match state.away_since {
            Some(since) => Some(state.suspended_after(since, Instant::now(), ttl)),
            None => state.suspension,
        };
        suspension.map(|suspension| suspension.ends(ttl))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn error() -> Result<(), StoreError> {
        let cause = "no leader".to_owned();
        Err(StoreError::Unavailable { cause })
    }

    /// The store fails one request and answers the next one after `outage`.
    async fn fails_for(health: &StoreHealth, outage: Duration) {
        health.on_result(&error(), TTL);
        tokio::time::advance(outage).await;
        health.on_result(&Ok(()), TTL);
    }

    fn may_expire(health: &StoreHealth) -> bool {
        health
            .expire_from(TTL)
            .is_none_or(|at| at <= Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_outage_no_node_is_expired_for_a_ttl() {
        let health = StoreHealth::default();
        assert!(may_expire(&health));
        health.on_result(&error(), TTL);
        tokio::time::advance(TTL * 10).await;
        assert!(!may_expire(&health), "it is away");
        health.on_result(&Ok(()), TTL);
        tokio::time::advance(TTL * 9 / 10).await;
        assert!(!may_expire(&health));
        // A long outage that begins during the suspension starts a whole TTL again.
        fails_for(&health, TTL).await;
        tokio::time::advance(TTL * 9 / 10).await;
        assert!(!may_expire(&health));
        tokio::time::advance(TTL / 10).await;
        assert!(may_expire(&health));
    }

    /// Issue 10, D2: one error per TTL suspended expiry indefinitely.
    #[tokio::test(start_paused = true)]
    async fn an_error_now_and_then_does_not_suspend_expiry_indefinitely() {
        for (between, outage) in [
            (TTL / 2, Duration::ZERO),
            (TTL * 9 / 10, TTL / 100),
            (TTL / 10, TTL / 100),
            (TTL / 10, TTL / 10),
        ] {
            let health = StoreHealth::default();
            let start = Instant::now();
            fails_for(&health, outage).await;
            let mut waited = Duration::ZERO;
            // Like the leader, which wakes up when it may expire nodes.
            while !may_expire(&health) {
                let at = health.expire_from(TTL).unwrap();
                let left = at.saturating_duration_since(Instant::now());
                if left <= between - waited {
                    tokio::time::advance(left).await;
                    waited += left;
                    continue;
                }
                tokio::time::advance(between - waited).await;
                waited = Duration::ZERO;
                fails_for(&health, outage).await;
                assert!(start.elapsed() < TTL * 5, "{between:?} {outage:?}");
            }
        }
    }
}
