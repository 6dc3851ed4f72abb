//! Whether this replica reaches its store. In comes how its last requests ended; out goes since when the store is away,
//! or how long ago it came back: who judges others by what the store says must know that it was deaf itself.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::store::StoreError;

#[derive(Debug, Default)]
struct State {
    away_since: Option<Instant>,
    back_since: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<State>);

impl Reach {
    /// A request ended so.
    pub(super) fn on_result<T>(&self, result: &Result<T, StoreError>) {
        let mut state = self.lock();
        match result {
            Err(StoreError::Unavailable { cause }) if state.away_since.is_none() => {
                tracing::warn!(
                    event = "store-away",
                    cause,
                    "the store does not answer; what is known of the mesh stays in use"
                );
                state.away_since = Some(Instant::now());
            }
            Err(StoreError::Unavailable { .. } | StoreError::Closed) => {}
            _ => {
                if let Some(since) = state.away_since.take() {
                    let away = since.elapsed();
                    tracing::info!(event = "store-back", ?away, "the store answers again");
                    state.back_since = Some(Instant::now());
                }
            }
        }
    }

    /// For how long the store has not answered; none: it does.
    pub(super) fn away(&self) -> Option<Duration> {
        Some(self.lock().away_since?.elapsed())
    }

    /// Before this moment nobody may be judged by what the store says: it was away, and who lapsed meanwhile could
    /// not renew.
    pub(super) fn judge_from(&self, ttl: Duration) -> Option<Instant> {
        let state = self.lock();
        let back = if state.away_since.is_some() {
            Some(Instant::now())
        } else {
            state.back_since
        };
        back.map(|at| at + ttl)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
