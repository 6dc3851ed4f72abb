//! Counters of the xDS streams.

use std::sync::atomic::{AtomicU64, Ordering};

use super::RequestOutcome;
use crate::snapshot::{Kind, PerKind};

/// Counters since the process began.
#[derive(Debug, Default)]
pub struct Metrics {
    pub responses: PerKind<AtomicU64>,
    pub response_bytes: PerKind<AtomicU64>,
    pub acknowledged: PerKind<AtomicU64>,
    pub rejected: PerKind<AtomicU64>,
    /// Requests that answer a response which is not the newest.
    pub stale: AtomicU64,
    /// Requests for types that are not served.
    pub unknown_types: AtomicU64,
    /// Streams ended because the client exceeded a limit or sent a malformed request.
    pub violations: AtomicU64,
    /// Streams refused because there were too many in all, of one client or at once.
    pub refused: AtomicU64,
    /// Streams ended because the client was stuck.
    pub stuck: AtomicU64,
    /// Streams ended because of their age, to spread clients over the replicas.
    pub spread: AtomicU64,
    /// Streams ended because this replica had more than its share.
    pub shed: AtomicU64,
    /// Streams ended or refused because this replica lagged behind others.
    pub lagging: AtomicU64,
    /// Times that a client sent too fast and had to wait.
    pub muted: AtomicU64,
    /// Times that newer states of large resources had to wait.
    pub held_back: AtomicU64,
    /// Streams ended because the client had seen a newer revision.
    pub behind: AtomicU64,
}

impl Metrics {
    pub(super) fn count_outcome(&self, kind: Kind, outcome: RequestOutcome) {
        match outcome {
            RequestOutcome::Subscribed => {}
            RequestOutcome::Acknowledged => count(self.acknowledged.get(kind)),
            RequestOutcome::Rejected => count(self.rejected.get(kind)),
            RequestOutcome::Stale => count(&self.stale),
        }
    }

    pub(super) fn sent(&self, kind: Kind, bytes: usize) {
        count(self.responses.get(kind));
        self.response_bytes
            .get(kind)
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
