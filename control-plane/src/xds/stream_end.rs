//! Streams that the control plane ends, mostly so that their clients connect to another replica: because this one
//! lags or has more than its share, or because the stream is old. The decisions are made by the membership, `shed`
//! and `pace`.

use std::time::Duration;

use heddle_proto::{BEHIND, ERROR_DOMAIN};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    Ads, Variant,
    metrics::count,
    pace::{Verdict, scattered},
    stream::Stream,
};
use crate::registry::Lag;

/// The streams of a replica end within this time: the others admit so many in a second.
const SPREAD_MS: u64 = 1_000;

/// Waits until a stream has to end because this replica lags: a new one at once. `seed` spreads those that are here.
pub(super) async fn left_behind(ads: &Ads, seed: u64) -> Status {
    let mut lag = ads.membership().lag();
    let pause = match *lag.borrow_and_update() {
        // Not even for a moment: it would be told something.
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
    /// Ends the stream of a client that is stuck, one that is old, and one of too many.
    pub(super) fn look(&mut self) -> Result<(), Status> {
        let owes = self.member.client.state().awaits_answer();
        let queued = self.responses.max_capacity() - self.responses.capacity();
        let others = self.ads.membership().streams_elsewhere();
        let metrics = self.ads.clients().metrics();
        let now = Instant::now();
        match self.pace.look(now, owes, queued, others.is_empty()) {
            Verdict::Fine if !self.stays && self.pace.may_go(now, owes, queued) => {
                self.shed(now, &others)
            }
            Verdict::Fine => Ok(()),
            Verdict::Stuck => {
                count(&metrics.stuck);
                let text = format!(
                    "the client has neither read nor answered anything for {:?}: its stream ends",
                    self.ads.gate().limits().stuck_after
                );
                tracing::warn!(node = %self.member.client.node.id, "{text}");
                Err(Status::resource_exhausted(text))
            }
            Verdict::Old => {
                count(&metrics.spread);
                Err(self
                    .elsewhere("reconnect: now and then streams are spread over the replicas anew"))
            }
        }
    }

    /// Ends the stream if this replica has too many and it is time for one of them to go.
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

    /// The end of a stream whose client has seen a newer revision than this replica shows.
    pub(super) fn behind(&self, revision: u64, seen: u64, text: String) -> Status {
        self.connection.begin();
        let metadata = [("revision", revision), ("seen", seen)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_string()));
        let details = ErrorDetails::with_error_info(BEHIND, ERROR_DOMAIN, metadata);
        Status::with_error_details(Code::Unavailable, text, details)
    }

    /// The end of a stream whose client shall go to another replica. With its connection it goes through the load
    /// balancer again; most clients would else open the next stream on the connection that they have.
    pub(super) fn elsewhere(&self, text: impl Into<String>) -> Status {
        self.connection.begin();
        Status::unavailable(text)
    }
}
