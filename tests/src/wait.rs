//! Waits for a state instead of sleeping: repeats a question until it is answered with `Ok`, and prints the last answer on
//! timeout. The timeout is for a stuck machine; it does not measure speed.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Long enough for a slow, busy machine; tests that pass never wait for it.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks until `Ok`; panics with the last `Err` after [`TIMEOUT`].
pub async fn until<T, E: Display>(what: &str, ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    within(TIMEOUT, what, ask).await
}

/// Asks until `Ok`; panics with the last `Err` after `timeout`.
pub async fn within<T, E: Display>(
    timeout: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // A question that hangs must not outlive the timeout by much.
        let bound = left.max(Duration::from_secs(1));
        let last = match tokio::time::timeout(bound, ask()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(seen)) => seen.to_string(),
            Err(_) => "no answer at all".to_owned(),
        };
        assert!(
            Instant::now() < end,
            "not within {timeout:?}: {what}\nlast seen: {last}"
        );
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// `Ok(())` where the condition holds, else what was seen.
pub fn seen(holds: bool, what: impl Display) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_string()) }
}
