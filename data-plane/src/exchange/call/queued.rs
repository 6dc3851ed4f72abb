//! How many bytes of a call are queued for its receiver, and how fast the receiver takes them. Takes counts and `now`;
//! says whether the receiver is too slow. The bytes themselves and their owner do not belong here.

use std::time::{Duration, Instant};

use crate::connection::MIN_TAKEN;

/// Bytes queued for one receiver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queued {
    bytes: usize,
    /// Start of the current measurement of the receiver, and the bytes that it has taken since.
    since: Instant,
    taken: usize,
}

impl Queued {
    #[inline]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            bytes: 0,
            since: now,
            taken: 0,
        }
    }

    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// More bytes are queued. That says nothing about the receiver.
    #[inline]
    pub(super) fn add(&mut self, bytes: usize, now: Instant) {
        if self.bytes == 0 {
            (self.since, self.taken) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// The receiver took this many bytes.
    #[inline]
    pub(super) fn take(&mut self, bytes: usize, now: Instant) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.taken += bytes;
        if self.taken >= MIN_TAKEN {
            (self.since, self.taken) = (now, 0);
        }
    }

    /// All queued bytes were discarded.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.bytes = 0;
    }

    /// Some queued bytes were discarded, which is not progress of the receiver.
    pub(super) fn discard(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Bytes are queued, and the receiver has taken less than [`MIN_TAKEN`] for `limit`.
    pub(super) fn is_stalled(&self, now: Instant, limit: Duration) -> bool {
        self.bytes > 0 && now >= self.since + limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_byte_now_and_then_is_a_stall_and_a_slow_steady_reader_is_not() {
        let start = Instant::now();
        let (mut dribble, mut steady) = (Queued::new(start), Queued::new(start));
        dribble.add(1 << 20, start);
        steady.add(1 << 20, start);
        let mut now = start;
        for second in 1..=60 {
            now = start + Duration::from_secs(second);
            steady.take(600, now);
            assert!(!steady.is_stalled(now, LIMIT), "{second} s");
            if second % 29 == 0 {
                dribble.take(1, now);
            }
            // What is added does not count as taken by the receiver.
            dribble.add(1000, now);
        }
        assert!(dribble.is_stalled(now, LIMIT));
        assert!(!dribble.is_stalled(start + LIMIT / 2, LIMIT));
    }

    #[test]
    fn a_receiver_is_measured_from_when_bytes_wait_for_it() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3600);
        let mut queued = Queued::new(start);
        assert!(!queued.is_stalled(later, LIMIT), "nothing waits");
        queued.add(10, later);
        assert!(!queued.is_stalled(later, LIMIT));
        assert!(queued.is_stalled(later + LIMIT, LIMIT));
        queued.take(10, later + LIMIT);
        assert!(queued.is_empty() && !queued.is_stalled(later + 2 * LIMIT, LIMIT));
        queued.add(10, later + 3 * LIMIT);
        assert!(!queued.is_stalled(later + 3 * LIMIT, LIMIT));
        queued.discard(10);
        assert!(queued.is_empty());
    }
}
