//! A worker's state of one endpoint: its measured latency, and the calls on it. Takes the begin and end of attempts, and
//! latencies; gives the cost of another call. Which endpoint is chosen is decided in `balance`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balance::ewma::PeakEwma;
use crate::keys::PoolKey;
use crate::observe::load::LocalityLoad;

/// This worker's state of one endpoint.
#[derive(Debug)]
pub(crate) struct Load {
    ewma: PeakEwma,
    /// Calls sent to it or waiting for it.
    pending: u32,
    pub(super) pool: PoolKey,
    /// Counts the attempts of this node's callers for load reports; set at the first one.
    reported: Option<Arc<LocalityLoad>>,
    /// A table said that it drains, and no attempt has begun since.
    draining: bool,
}

impl Load {
    pub(super) fn new(pool: PoolKey) -> Self {
        Self {
            ewma: PeakEwma::default(),
            pending: 0,
            pool,
            reported: None,
            draining: false,
        }
    }

    /// Calls sent to it or waiting for it.
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        self.pending
    }

    /// Whether it was told to stop, so that it gets no new calls; also when it is in no table any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn drains(&mut self) {
        self.draining = true;
    }

    /// The cost of one more call.
    #[inline]
    pub(crate) fn cost(&self, weight: u32, now: Instant) -> f64 {
        self.ewma.cost(self.pending, weight, now)
    }

    /// The latency that is expected of it.
    pub(crate) fn estimate(&self, now: Instant) -> Duration {
        self.ewma.estimate(now)
    }

    /// An attempt begins. `reported` gives its counters for load reports, if this proxy reports it.
    #[inline]
    pub(crate) fn begin(&mut self, reported: Option<impl FnOnce() -> Arc<LocalityLoad>>) {
        self.pending += 1;
        self.draining = false;
        if let Some(reported) = reported {
            self.reported.get_or_insert_with(reported).begin();
        }
    }

    /// An attempt has ended. `reported`: whether it succeeded and how long it took, if this proxy reports it.
    #[inline]
    pub(crate) fn end(&mut self, reported: Option<(bool, Duration)>) {
        self.pending = self.pending.saturating_sub(1);
        if let (Some(load), Some((ok, took))) = (&self.reported, reported) {
            load.end(ok, took);
        }
    }

    /// An attempt was answered after this time.
    #[inline]
    pub(crate) fn answered(&mut self, latency: Duration, now: Instant) {
        self.ewma.observe(latency, now);
    }

    /// An attempt has not been answered for this time.
    pub(crate) fn unanswered(&mut self, latency: Duration, now: Instant) {
        self.ewma.at_least(latency, now);
    }

    /// Drops its counters for load reports if they are of a service that is `gone`.
    pub(crate) fn forget(&mut self, gone: impl FnOnce(&str) -> bool) {
        if self
            .reported
            .as_ref()
            .is_some_and(|load| gone(&load.service))
        {
            self.reported = None;
        }
    }
}
