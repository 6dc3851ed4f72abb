//! Awaits a state instead of sleeping: asks again and again until the question is answered with `Ok`, and prints the
//! last answer when time is up. The time is a bound for a stuck machine, never a measure of speed.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Long enough for a slow, busy machine; tests that pass never wait for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until `Ok`; panics with the last `Err` after [`PATIENCE`].
pub async fn until<T, E: Display>(what: &str, ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    within(PATIENCE, what, ask).await
}

/// Asks until `Ok`; panics with the last `Err` when `patience` is over.
pub async fn within<T, E: Display>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // A question that hangs must not outlive the patience by much.
        let bound = left.max(Duration::from_secs(1));
        let last = match tokio::time::timeout(bound, ask()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(seen)) => seen.to_string(),
            Err(_) => "no answer at all".to_owned(),
        };
        assert!(
            Instant::now() < end,
            "not within {patience:?}: {what}\nlast seen: {last}"
        );
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// `Ok(())` where the condition holds, else what was seen.
pub fn seen(holds: bool, what: impl Display) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_string()) }
}
