//! The timing of one stream: how fast its client may send, how long it may be silent, and when the stream ends
//! because of its age. Pure.

use std::time::Duration;

use heddle_pacing::TokenBucket;
use tokio::time::Instant;

use super::Limits;

/// Longest time between two looks at a stream.
const MAX_TICK: Duration = Duration::from_secs(15);
/// How much longer a stream may live that is busy at the end of its life.
const GRACE: Duration = Duration::from_secs(30);
/// Names in a request that cost as much as a request.
const NAMES_PER_UNIT: usize = 50;

/// The result of a check of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// The client owes an answer and gives no sign of life.
    Stuck,
    /// It has lived long enough.
    Old,
}

#[derive(Debug)]
pub(super) struct Pace {
    speech: TokenBucket,
    large: TokenBucket,
    /// No newer state of a large resource goes out before.
    large_from: Option<Instant>,
    /// Nothing is read from the client before.
    paused_until: Option<Instant>,
    stuck_after: Duration,
    /// The last sign of life, or when the client was last owed nothing.
    alive: Instant,
    /// Responses that the transport had not taken at the last look.
    queued: usize,
    life: Duration,
    ends: Instant,
    /// Not to be sent elsewhere before.
    settles: Instant,
    tick: Duration,
}

impl Pace {
    /// `seed` spreads the ends of streams that began together.
    pub(super) fn new(limits: &Limits, seed: u64, now: Instant) -> Self {
        // 80 to 120 %.
        let life =
            limits.max_age * u32::try_from(800 + scattered(seed) % 401).unwrap_or(1_000) / 1_000;
        Self {
            speech: TokenBucket::new(limits.units_at_once, limits.units_per_second),
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

    /// How often to look.
    pub(super) fn tick(&self) -> Duration {
        self.tick
    }

    /// A request with so many names came; true if the client has to slow down from here on.
    pub(super) fn on_request(&mut self, names: usize, now: Instant) -> bool {
        self.alive = now;
        let units = u32::try_from(1 + names / NAMES_PER_UNIT).unwrap_or(u32::MAX);
        let wait = self.speech.take(now.into_std(), units);
        self.paused_until = (!wait.is_zero()).then(|| now + wait);
        self.paused_until.is_some()
    }

    /// None: the client may speak.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// So many KiB of large resources went out; `others`: how long all clients together make it wait. True if it has to
    /// wait for the next ones.
    pub(super) fn sent_large(&mut self, kib: u32, others: Duration, now: Instant) -> bool {
        let wait = self.large.take(now.into_std(), kib).max(others);
        self.large_from = (!wait.is_zero()).then(|| now + wait);
        self.large_from.is_some()
    }

    /// None: large resources may go out.
    pub(super) fn large_from(&self) -> Option<Instant> {
        self.large_from
    }

    pub(super) fn release_large(&mut self) {
        self.large_from = None;
    }

    /// A response goes out: the client's time begins.
    pub(super) fn sent(&mut self, now: Instant) {
        self.alive = now;
        self.queued += 1;
    }

    /// Whether it loses nothing if it is sent elsewhere now: it has been here for a while, owes no answer, and the
    /// transport has taken all.
    pub(super) fn may_go(&self, now: Instant, owes: bool, queued: usize) -> bool {
        now >= self.settles && !owes && queued == 0
    }

    /// `owes`: a response waits for the client's answer; `queued`: responses that the transport has not taken;
    /// `alone`: there is no other replica to go to.
    pub(super) fn look(&mut self, now: Instant, owes: bool, queued: usize, alone: bool) -> Verdict {
        if !owes || queued < self.queued {
            self.alive = now;
        }
        self.queued = queued;
        if now.saturating_duration_since(self.alive) >= self.stuck_after {
            return Verdict::Stuck;
        }
        if now < self.ends {
            return Verdict::Fine;
        }
        if alone {
            self.ends = now + self.life;
            return Verdict::Fine;
        }
        // A client that knows everything loses nothing while it goes elsewhere.
        if owes && now < self.ends + GRACE {
            return Verdict::Fine;
        }
        Verdict::Old
    }
}

/// Numbers in a row become numbers all over (splitmix64).
pub(super) fn scattered(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
