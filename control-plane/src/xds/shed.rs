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
    admission::{ClientKey, client_key},
};

/// This many streams above the mean are always allowed.
const MARGIN: usize = 4;
/// A client that reconnects here within this time cannot reach another replica, or was sent here again: it may stay.
const RETURN_WINDOW: Duration = Duration::from_secs(60);

/// The number of surplus streams of a replica: those above 1.2 times the mean of all replicas, and also above the mean
/// plus four. `away`: streams that it ended and that no other replica may have counted yet.
pub(super) fn excess(own: usize, others: &[usize], away: usize) -> usize {
    if others.is_empty() {
        return 0;
    }
    let replicas = others.len() + 1;
    let others = others
        .iter()
        .fold(0, |sum: usize, of| sum.saturating_add(*of));
    let all = own.saturating_add(others).saturating_add(away);
    let most = (all / replicas).saturating_add(MARGIN);
    let most = most.max(all.saturating_add(all / 5) / replicas);
    own.saturating_sub(most)
}

/// The streams that this replica shed recently. Its size is limited by the rate of shedding.
#[derive(Debug)]
pub(super) struct Shedding {
    rate: TokenBucket,
    /// How old the numbers of other replicas may be.
    lag: Duration,
    /// Streams shed within the lag.
    recent: VecDeque<Instant>,
    /// It is not known whether clients really reach another replica. So within the lifetime of a stream no more streams
    /// are shed than there were at the beginning.
    span: Duration,
    begun: Option<Instant>,
    left: usize,
    /// The clients that were shed, and when.
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

    /// Whether one stream should be shed; if so, it is counted as shed.
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

    /// Notes that this client was shed.
    pub(super) fn sent(&mut self, address: &str, node: &str, now: Instant) {
        self.sent.retain(|_, at| now < *at + RETURN_WINDOW);
        self.sent.insert(client_key(address, node), now);
    }

    /// Whether this client was shed a moment ago and has reconnected here.
    pub(super) fn is_back(&self, address: &str, node: &str, now: Instant) -> bool {
        let sent = self.sent.get(&client_key(address, node));
        sent.is_some_and(|at| now < *at + RETURN_WINDOW)
    }
}
