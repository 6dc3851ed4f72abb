//! The end of streams at a replica that lags: their clients go to others, which know more, and new ones are refused. In
//! comes the registry's lag, out goes what a client is told. Whether this replica lags is judged in `registry`.

use std::time::Duration;

use tonic::Status;

use super::{Ads, metrics::count, pace::scattered};
use crate::registry::Lag;

/// The streams of a replica end within this time: the others admit so many in a second.
const SPREAD_MS: u64 = 1_000;

/// Waits until a stream has to end because this replica lags: a new one at once. `seed` spreads those that are here.
pub(super) async fn left_behind(ads: &Ads, seed: u64) -> Status {
    let mut lag = ads.registry().lag();
    if lag.borrow_and_update().is_none() {
        loop {
            // The sender lives in the registry: it cannot fail.
            let _ = lag.wait_for(Option::is_some).await;
            tokio::time::sleep(Duration::from_millis(scattered(seed) % SPREAD_MS)).await;
            if lag.borrow().is_some() {
                break;
            }
        }
    }
    count(&ads.clients().metrics().lagging);
    let text = match &*lag.borrow() {
        Some(Lag { own, seen, by }) => {
            format!("this replica lags: it is at revision {own}, and replica {by} has seen {seen}")
        }
        None => "this replica lagged behind others".to_owned(),
    };
    Status::unavailable(format!("{text}; reconnect, to another replica"))
}
