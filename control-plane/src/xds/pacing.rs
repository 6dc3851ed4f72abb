//! The timing of one stream: how fast its client may send, how long it may be silent, and when the stream ends
//! because of its age. Pure.

use std::time::Duration;

use heddle_pacing::TokenBucket;
use tokio::time::Instant;

use super::Limits;

/// Longest time between two checks of a stream.
const MAX_TICK: Duration = Duration::from_secs(15);
/// How much longer a stream may live if it is busy when its lifetime is over.
const GRACE: Duration = Duration::from_secs(30);
/// This many names in a request cost as much as a request.
const NAMES_PER_UNIT: usize = 50;

/// The result of a check of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamCheck {
    Fine,
    /// The client owes an answer and shows no sign of life.
    Stuck,
    /// Its lifetime is over.
    Old,
}

#[derive(Debug)]
pub(super) struct StreamPacing {
    requests: TokenBucket,
    large: TokenBucket,
    /// No newer state of a large resource is sent before this.
    large_from: Option<Instant>,
    /// Nothing is read from the client before this.
    paused_until: Option<Instant>,
    stuck_after: Duration,
    /// When the client last showed a sign of life or owed no answer.
    alive: Instant,
    /// Responses that the transport had not taken at the last check.
    queued: usize,
    life: Duration,
    ends: Instant,
    /// The stream is not shed before this.
    settles: Instant,
    tick: Duration,
}

impl StreamPacing {
    /// `seed` spreads the ends of streams that began together.
    pub(super) fn new(limits: &Limits, seed: u64, now: Instant) -> Self {
        // 80 to 120 %.
        let life =
            limits.max_age * u32::try_from(800 + scattered(seed) % 401).unwrap_or(1_000) / 1_000;
        Self {
            requests: TokenBucket::new(limits.units_at_once, limits.units_per_second),
            large: TokenBucket::new(limits.large_kib_at_once, limits.large_kib_per_second),
            large_from: None,
            paused_until: None,
            stuck_after: limits.stuck_after,
            alive: now,
            queued: 0,
            life,
            ends: now + life,
            settles: now + limits.shed_after,
            tick: MAX_TICK
                .min(limits.stuck_after / 4)
                .min(limits.max_age / 4)
                .min(limits.shed_after / 4),
        }
    }

    /// How often to check the stream.
    pub(super) fn tick(&self) -> Duration {
        self.tick
    }

    /// A request with `names` names came. True if the client now has to slow down.
    pub(super) fn on_request(&mut self, names: usize, now: Instant) -> bool {
        self.alive = now;
        let units = u32::try_from(1 + names / NAMES_PER_UNIT).unwrap_or(u32::MAX);
        let wait = self.requests.take(now.into_std(), units);
        self.paused_until = (!wait.is_zero()).then(|| now + wait);
        self.paused_until.is_some()
    }

    /// None: requests are read.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// `kib` KiB of large resources were sent. `others`: the wait that the limit of all clients together demands. True
    /// if this client has to wait for the next ones.
    pub(super) fn sent_large(&mut self, kib: u32, others: Duration, now: Instant) -> bool {
        let wait = self.large.take(now.into_std(), kib).max(others);
        self.large_from = (!wait.is_zero()).then(|| now + wait);
        self.large_from.is_some()
    }

    /// None: large resources may be sent.
    pub(super) fn large_from(&self) -> Option<Instant> {
        self.large_from
    }

    pub(super) fn release_large(&mut self) {
        self.large_from = None;
    }

    /// A response is sent: the client's time to answer begins.
    pub(super) fn sent(&mut self, now: Instant) {
        self.alive = now;
        self.queued += 1;
    }

    /// Whether the client loses nothing if its stream ends now: it is old enough, no answer is owed, and the transport
    /// has taken all responses.
    pub(super) fn may_go(&self, now: Instant, owes: bool, queued: usize) -> bool {
        now >= self.settles && !owes && queued == 0
    }

    /// Checks the stream. `owes`: a response waits for the client's answer; `queued`: responses that the transport has
    /// not taken; `alone`: there is no other replica.
    pub(super) fn check(
        &mut self,
        now: Instant,
        owes: bool,
        queued: usize,
        alone: bool,
    ) -> StreamCheck {
        if !owes || queued < self.queued {
            self.alive = now;
        }
        self.queued = queued;
        if now.saturating_duration_since(self.alive) >= self.stuck_after {
            return StreamCheck::Stuck;
        }
        if now < self.ends {
            return StreamCheck::Fine;
        }
        if alone {
            self.ends = now + self.life;
            return StreamCheck::Fine;
        }
        // A client that has answered everything loses nothing by reconnecting.
        if owes && now < self.ends + GRACE {
            return StreamCheck::Fine;
        }
        StreamCheck::Old
    }
}

/// Spreads consecutive numbers over all of `u64` (splitmix64).
pub(super) fn scattered(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
