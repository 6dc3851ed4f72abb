//! Ends streams, mostly so that their clients connect to another replica: because this one lags or has more than its
//! share, or because the stream is old. The membership, `shed` and `pacing` decide it.

use std::time::Duration;

use heddle_proto::{BEHIND, ERROR_DOMAIN};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    Ads, Variant,
    metrics::count,
    pacing::{StreamCheck, scattered},
    stream::Stream,
};
use crate::registry::Lag;

/// A replica's streams end spread over this time: the other replicas admit a limited number per second.
const SPREAD_MS: u64 = 1_000;

/// Waits until a stream has to end because this replica lags. A new stream ends at once; `seed` spreads the others.
pub(super) async fn left_behind(ads: &Ads, seed: u64) -> Status {
    let mut lag = ads.membership().lag();
    let pause = match *lag.borrow_and_update() {
        // Without a pause: the client would be sent an old state.
        Some(_) => None,
        None => Some(Duration::from_millis(scattered(seed) % SPREAD_MS)),
    };
    loop {
        // The sender lives in the registry: it cannot fail.
        let _ = lag.wait_for(Option::is_some).await;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let Some(Lag { own, seen, by }) = lag.borrow().clone() else {
            continue;
        };
        count(&ads.clients().metrics().lagging);
        return Status::unavailable(format!(
            "this replica lags: it is at revision {own}, and replica {by} has seen {seen}; reconnect, to another replica"
        ));
    }
}

impl<V: Variant> Stream<'_, V> {
    /// Ends the stream if its client is stuck, if it is old, or if this replica has too many streams.
    pub(super) fn check(&mut self) -> Result<(), Status> {
        let owes = self.member.client.state().awaits_ack();
        let queued = self.responses.max_capacity() - self.responses.capacity();
        let others = self.ads.membership().streams_elsewhere();
        let metrics = self.ads.clients().metrics();
        let now = Instant::now();
        match self.pacing.check(now, owes, queued, others.is_empty()) {
            StreamCheck::Fine if !self.stays && self.pacing.may_go(now, owes, queued) => {
                self.shed(now, &others)
            }
            StreamCheck::Fine => Ok(()),
            StreamCheck::Stuck => {
                count(&metrics.stuck);
                let text = format!(
                    "the client has neither read nor answered anything for {:?}: its stream ends",
                    self.ads.admission().limits().stuck_after
                );
                tracing::warn!(node = %self.member.client.node.id, "{text}");
                Err(Status::resource_exhausted(text))
            }
            StreamCheck::Old => {
                count(&metrics.spread);
                Err(self.elsewhere(
                    "reconnect: streams are rebalanced over the replicas from time to time",
                ))
            }
        }
    }

    /// Ends the stream if this replica has too many and the rate of shedding allows it.
    fn shed(&self, now: Instant, others: &[usize]) -> Result<(), Status> {
        let clients = self.ads.clients();
        let mut shedding = self.ads.shedding();
        if !shedding.take(now, clients.len(), others) {
            return Ok(());
        }
        let client = &self.member.client;
        shedding.sent(&client.address, &client.node.id, now);
        count(&clients.metrics().shed);
        tracing::debug!(node = %client.node.id, "a client is sent to another replica");
        Err(self.elsewhere(
            "reconnect: this replica holds more xDS streams than its share, and others fewer",
        ))
    }

    /// The status of a stream whose client has seen a newer revision than this replica has.
    pub(super) fn behind(&self, revision: u64, seen: u64, text: String) -> Status {
        self.connection.begin();
        let metadata = [("revision", revision), ("seen", seen)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_string()));
        let details = ErrorDetails::with_error_info(BEHIND, ERROR_DOMAIN, metadata);
        Status::with_error_details(Code::Unavailable, text, details)
    }

    /// The status of a stream whose client should connect to another replica. The connection ends too, so that the
    /// client passes the load balancer again; most clients would otherwise open the next stream on the same connection.
    pub(super) fn elsewhere(&self, text: impl Into<String>) -> Status {
        self.connection.begin();
        Status::unavailable(text)
    }
}
