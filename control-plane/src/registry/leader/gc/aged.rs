//! How long things have been unused. Pure: `now` is passed in and is monotonic, so a new leader starts counting at
//! zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Unused names, and since when; as many as were observed last.
#[derive(Debug)]
pub(super) struct Aged<K>(BTreeMap<K, Instant>);

impl<K> Default for Aged<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Aged<K> {
    /// Reports the names that are unused now; all others are forgotten.
    pub(super) fn observe(&mut self, unused: BTreeSet<K>, now: Instant) {
        self.0.retain(|name, _| unused.contains(name));
        for name in unused {
            self.0.entry(name).or_insert(now);
        }
    }

    /// The names that have been unused for `grace`, and the oldest ones beyond `at_most`; sorted by age, then by name.
    pub(super) fn due(&self, now: Instant, grace: Duration, at_most: usize) -> Vec<K> {
        let mut oldest: Vec<_> = self.0.iter().collect();
        oldest.sort_by_key(|(_, since)| **since);
        let too_many = oldest.len().saturating_sub(at_most);
        let is_due = |place: usize, since: Instant| {
            place < too_many || now.saturating_duration_since(since) >= grace
        };
        oldest
            .into_iter()
            .enumerate()
            .filter(|(place, (_, since))| is_due(*place, **since))
            .map(|(_, (name, _))| name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unused_for_long_or_too_much_of_it_is_due() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let grace = Duration::from_secs(10);
        let mut aged = Aged::default();
        aged.observe(BTreeSet::from([1, 2]), at(0));
        aged.observe(BTreeSet::from([1, 2, 0]), at(5));
        assert_eq!(aged.due(at(9), grace, 9), [0; 0]);
        assert_eq!(aged.due(at(10), grace, 9), [1, 2]);
        assert_eq!(aged.due(at(9), grace, 2), [1], "the oldest of too many");
        // It was used meanwhile: its age starts at zero again.
        aged.observe(BTreeSet::from([2, 0]), at(11));
        aged.observe(BTreeSet::from([1, 2, 0]), at(12));
        assert_eq!(aged.due(at(15), grace, 9), [2, 0]);
    }
}
