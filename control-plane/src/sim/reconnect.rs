//! Which replica a simulated agent or client tries next, and its pauses between connections: they double while
//! connections are short. Takes the seed's random numbers and how long a connection lasted.

use std::time::Duration;

use super::random::Random;

/// In milliseconds.
const FIRST_PAUSE: u64 = 250;
const LONGEST_PAUSE: u64 = 3000;
/// After a connection that lasted longer, the pauses start again at the first one.
const LASTED: Duration = Duration::from_secs(10);

pub(super) struct Reconnect {
    replicas: usize,
    next: usize,
    pause: u64,
}

impl Reconnect {
    /// The first replica is random.
    pub(super) fn new(replicas: usize, random: &mut Random) -> Self {
        Self {
            replicas,
            next: random.index(replicas),
            pause: FIRST_PAUSE,
        }
    }

    /// The replica to try now.
    pub(super) fn replica(&mut self) -> usize {
        let replica = self.next % self.replicas;
        self.next += 1;
        replica
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, lasted: Duration) {
        if lasted > LASTED {
            self.pause = FIRST_PAUSE;
        }
    }

    /// The pause after a connection that broke.
    pub(super) fn pause(&mut self, random: &mut Random) -> Duration {
        let pause = random.millis(self.pause * 6 / 10..=self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        pause
    }
}
