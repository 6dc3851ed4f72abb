//! Decides whether another stream should be sent to another replica because this one has clearly more than its share.
//! Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use heddle_pacing::TokenBucket;
use tokio::time::Instant;

use super::{
    Limits,
    gate::{ClientKey, client_key},
};

/// This many streams above the mean are allowed, however few streams there are.
const SPARE: usize = 4;
/// A client that comes back within this time has nowhere else to go, or was sent here again: it may stay.
const COMES_BACK: Duration = Duration::from_secs(60);

/// How many of its streams a replica has too many: those above 1.2 times the mean of all replicas, and above the mean
/// and four. `away`: streams that it sent elsewhere and that nobody may have counted yet.
pub(super) fn excess(own: usize, others: &[usize], away: usize) -> usize {
    if others.is_empty() {
        return 0;
    }
    let replicas = others.len() + 1;
    let others = others
        .iter()
        .fold(0, |sum: usize, of| sum.saturating_add(*of));
    let all = own.saturating_add(others).saturating_add(away);
    let most = (all / replicas).saturating_add(SPARE);
    let most = most.max(all.saturating_add(all / 5) / replicas);
    own.saturating_sub(most)
}

/// What this replica has sent away of late. All of it is bounded by the rate at which it does so.
#[derive(Debug)]
pub(super) struct Shedding {
    rate: TokenBucket,
    /// What others say of themselves may be so old.
    lag: Duration,
    /// Streams that went within the lag.
    recent: VecDeque<Instant>,
    /// Nobody knows whether clients really reach another replica: within the time in which age ends each stream once,
    /// no more go than there were.
    span: Duration,
    begun: Option<Instant>,
    left: usize,
    /// Those that went, and when.
    sent: BTreeMap<ClientKey, Instant>,
}

impl Shedding {
    pub(super) fn new(limits: &Limits, lag: Duration) -> Self {
        Self {
            rate: TokenBucket::new(1, limits.sheds_per_second),
            lag,
            recent: VecDeque::new(),
            span: limits.max_age,
            begun: None,
            left: 0,
            sent: BTreeMap::new(),
        }
    }

    /// One stream asks whether it shall go; if so it is counted as gone.
    pub(super) fn take(&mut self, now: Instant, own: usize, others: &[usize]) -> bool {
        while self.recent.front().is_some_and(|at| now >= *at + self.lag) {
            self.recent.pop_front();
        }
        if excess(own, others, self.recent.len()) == 0 {
            return false;
        }
        if self.begun.is_none_or(|begun| now >= begun + self.span) {
            self.begun = Some(now);
            self.left = own;
        }
        if self.left == 0 || self.rate.try_take(now.into_std()).is_err() {
            return false;
        }
        self.left -= 1;
        self.recent.push_back(now);
        true
    }

    /// This client was sent elsewhere.
    pub(super) fn sent(&mut self, address: &str, node: &str, now: Instant) {
        self.sent.retain(|_, at| now < *at + COMES_BACK);
        self.sent.insert(client_key(address, node), now);
    }

    /// It was sent elsewhere a moment ago, and is here again.
    pub(super) fn is_back(&self, address: &str, node: &str, now: Instant) -> bool {
        let sent = self.sent.get(&client_key(address, node));
        sent.is_some_and(|at| now < *at + COMES_BACK)
    }
}
