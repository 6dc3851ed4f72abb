//! The only source of randomness in a run, from one seed. Every part has its own generator, because the order in which
//! tasks of one moment run is not deterministic in tokio (`watch` wakes its receivers at random). Source: SplitMix64
//! (Steele, Lea, Flood 2014).

use std::{ops::RangeInclusive, time::Duration};

#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A separate generator, which does not depend on the use of others.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn number(&mut self, of: RangeInclusive<u64>) -> u64 {
        of.start() + self.next() % (of.end() - of.start() + 1)
    }

    pub(super) fn count(&mut self, of: RangeInclusive<usize>) -> usize {
        let number = self.number(*of.start() as u64..=*of.end() as u64);
        usize::try_from(number).unwrap_or(*of.start())
    }

    /// A number from 0 up to, but not including, `below`.
    pub(super) fn index(&mut self, below: usize) -> usize {
        self.count(0..=below.saturating_sub(1))
    }

    /// True with this probability in thousandths.
    pub(super) fn chance(&mut self, permille: u64) -> bool {
        self.number(0..=999) < permille
    }

    pub(super) fn millis(&mut self, of: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.number(of))
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.index(from.len())).cloned()
    }
}

/// A hash of some bytes (FNV-1a), the same in each run.
pub(super) fn hash(before: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(before ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
