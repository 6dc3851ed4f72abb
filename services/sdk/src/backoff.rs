//! How long to wait before the next try, and how often to say that the last one failed. Pure: `now` is given.

use std::time::{Duration, Instant};

use rand::Rng as _;

/// The bounds of DESIGN §5: services retry for ever, 0.1 to 2 s apart.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Doubling bound with full jitter above the shortest wait, so that instances started together do not stay together.
#[derive(Debug)]
pub(crate) struct Backoff {
    bound: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { bound: SHORTEST }
    }

    pub(crate) fn reset(&mut self) {
        self.bound = SHORTEST;
    }

    pub(crate) fn next(&mut self, rng: &mut impl rand::RngCore) -> Duration {
        self.bound = (self.bound * 2).min(LONGEST);
        rng.random_range(SHORTEST..=self.bound)
    }
}

/// Lets a message through when it differs from the last one, or 30 s after it.
#[derive(Debug, Default)]
pub(crate) struct OnceInAWhile {
    last: Option<(String, Instant)>,
}

impl OnceInAWhile {
    const PAUSE: Duration = Duration::from_secs(30);

    pub(crate) fn due(&mut self, message: &str, now: Instant) -> bool {
        let quiet = self
            .last
            .as_ref()
            .is_some_and(|(text, at)| text == message && now.duration_since(*at) < Self::PAUSE);
        if !quiet {
            self.last = Some((message.to_owned(), now));
        }
        !quiet
    }

    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}
