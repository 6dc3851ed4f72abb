//! A timer wheel, and the purposes of a worker's timers. The cost of setting and unsetting does not depend on the
//! number of timers. Takes instants, gives the timers that are due; the caller reads the clock. One turn of the wheel
//! takes about two seconds; a timer that is due later stays in its slot for several turns.

use std::time::{Duration, Instant};

use crate::keys::{CallKey, ConnKey, PoolKey};

/// All timers of one worker.
pub(crate) type Timers = Wheel<Timer>;

/// The purpose of a timer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    /// A call's deadline.
    Deadline(CallKey),
    /// The end of a call's wait: for a table, for endpoints, for a stream or for the next attempt.
    Wait(CallKey),
    /// The next due time of a connection.
    Conn(ConnKey),
    /// A pool may dial again.
    Pool(PoolKey),
    /// Remove endpoints and pools that are gone, and end stalled calls.
    Sweep,
    /// Check whether the drain is complete.
    Drain,
    /// The drain timeout.
    DrainOver,
}

/// Width of a slot.
const TICK_MS: u64 = 2;
/// Number of slots; a multiple of 64 for the bitmap of used slots.
const SLOTS: usize = 1024;
/// End of a list.
const NIL: u32 = u32::MAX;

/// A timer that was set. Using it after the timer fired or was unset does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerId {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry<K> {
    /// `None` when the entry is free.
    key: Option<K>,
    at: u64,
    generation: u32,
    slot: usize,
    before: u32,
    after: u32,
}

/// Timers by the instant at which they are due.
#[derive(Debug)]
pub(crate) struct Wheel<K> {
    start: Instant,
    /// Tick up to which all timers have fired.
    done: u64,
    heads: Vec<u32>,
    used: [u64; SLOTS / 64],
    entries: Vec<Entry<K>>,
    free: Vec<u32>,
    len: usize,
}

impl<K: Copy> Wheel<K> {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            done: 0,
            heads: vec![NIL; SLOTS],
            used: [0; SLOTS / 64],
            entries: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    /// Fires `key` at `at` or up to two ticks later, never earlier.
    pub(crate) fn set(&mut self, at: Instant, key: K) -> TimerId {
        let tick = self.tick(at).saturating_add(1).max(self.done + 1);
        let slot = slot_of(tick);
        let after = self.heads.get(slot).copied().unwrap_or(NIL);
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                key: None,
                at: 0,
                generation: 0,
                slot,
                before: NIL,
                after: NIL,
            });
            u32::try_from(self.entries.len() - 1).unwrap_or(NIL)
        });
        let mut generation = 0;
        if let Some(entry) = self.entries.get_mut(index as usize) {
            generation = entry.generation.wrapping_add(1);
            *entry = Entry {
                key: Some(key),
                at: tick,
                generation,
                slot,
                before: NIL,
                after,
            };
        }
        if let Some(next) = self.entries.get_mut(after as usize) {
            next.before = index;
        }
        self.set_head(slot, index);
        self.len += 1;
        TimerId { index, generation }
    }

    /// Removes a timer.
    pub(crate) fn unset(&mut self, id: TimerId) {
        let alive = |e: &&Entry<K>| e.generation == id.generation && e.key.is_some();
        if self.entries.get(id.index as usize).filter(alive).is_some() {
            self.unlink(id.index);
        }
    }

    /// Removes and returns one timer that is due; to be called until `None`.
    pub(crate) fn due(&mut self, now: Instant) -> Option<K> {
        let now = self.tick(now);
        if self.len == 0 {
            self.done = self.done.max(now);
            return None;
        }
        while self.done < now {
            let slot = slot_of(self.done + 1);
            let mut at = self.heads.get(slot).copied().unwrap_or(NIL);
            // After a long sleep one pass over all slots is enough: each has its timers of all turns.
            while let Some(entry) = self.entries.get(at as usize).copied() {
                if entry.at <= now {
                    self.unlink(at);
                    return entry.key;
                }
                at = entry.after;
            }
            self.done += 1;
            if now - self.done > SLOTS as u64 {
                self.done = now - SLOTS as u64;
            }
        }
        None
    }

    /// How long until a timer may be due: a lower bound, at most one turn of the wheel.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        if self.len == 0 {
            return None;
        }
        let ahead = self.slots_ahead();
        let tick = self.done + 1 + ahead;
        let due = self.start + Duration::from_millis(tick.saturating_mul(TICK_MS));
        Some(due.saturating_duration_since(now))
    }

    /// Number of slots between the next slot and the first used one.
    fn slots_ahead(&self) -> u64 {
        let first = slot_of(self.done + 1);
        let mut ahead = 0;
        while ahead < SLOTS {
            let slot = (first + ahead) % SLOTS;
            let word = self.used.get(slot / 64).copied().unwrap_or(0) >> (slot % 64);
            if word != 0 {
                return (ahead + word.trailing_zeros() as usize) as u64;
            }
            ahead += 64 - slot % 64;
        }
        SLOTS as u64
    }

    fn tick(&self, at: Instant) -> u64 {
        // In milliseconds, since divisions of 128 bits are slow.
        let since = at.saturating_duration_since(self.start);
        let whole = since.as_secs().saturating_mul(1000);
        whole.saturating_add(since.subsec_millis().into()) / TICK_MS
    }

    fn unlink(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.key = None;
        let Entry {
            before,
            after,
            slot,
            ..
        } = *entry;
        match self.entries.get_mut(before as usize) {
            Some(previous) => previous.after = after,
            None => self.set_head(slot, after),
        }
        if let Some(next) = self.entries.get_mut(after as usize) {
            next.before = before;
        }
        self.free.push(index);
        self.len -= 1;
    }

    fn set_head(&mut self, slot: usize, index: u32) {
        if let Some(head) = self.heads.get_mut(slot) {
            *head = index;
        }
        if let Some(word) = self.used.get_mut(slot / 64) {
            let bit = 1u64 << (slot % 64);
            *word = if index == NIL {
                *word & !bit
            } else {
                *word | bit
            };
        }
    }
}

fn slot_of(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn all_due(wheel: &mut Wheel<usize>, now: Instant) -> BTreeSet<usize> {
        std::iter::from_fn(|| wheel.due(now)).collect()
    }

    #[test]
    fn fires_once_and_not_early() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.set(start + ms(10), 1);
        let second = wheel.set(start + ms(10), 2);
        wheel.set(start + ms(9_000), 3);
        wheel.unset(second);
        wheel.unset(second);
        assert!(all_due(&mut wheel, start + ms(9)).is_empty());
        assert!(wheel.wait(start + ms(9)).unwrap() <= ms(5));
        assert_eq!(all_due(&mut wheel, start + ms(14)), BTreeSet::from([1]));
        assert!(all_due(&mut wheel, start + ms(8_999)).is_empty());
        assert_eq!(all_due(&mut wheel, start + ms(9_005)), BTreeSet::from([3]));
        assert_eq!(wheel.wait(start), None);
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for (i, after) in [5, 1_900, 2_100, 50_000, 100_000].into_iter().enumerate() {
            wheel.set(start + ms(after), i);
        }
        assert_eq!(
            all_due(&mut wheel, start + ms(60_000)),
            BTreeSet::from([0, 1, 2, 3])
        );
        assert_eq!(
            all_due(&mut wheel, start + ms(200_000)),
            BTreeSet::from([4])
        );
    }

    #[test]
    fn a_worker_still_sleeps_after_a_hundred_days() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let late = start + ms(100 * 24 * 3_600_000);
        wheel.set(late + ms(500), 1);
        assert!(all_due(&mut wheel, late).is_empty());
        let wait = wheel.wait(late).unwrap();
        assert!((ms(400)..=ms(504)).contains(&wait), "{wait:?}");
        assert_eq!(all_due(&mut wheel, late + ms(504)), BTreeSet::from([1]));
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_list(
            timers in proptest::collection::vec((0u64..20_000, any::<bool>()), 1..60),
            steps in proptest::collection::vec(1u64..3_000, 1..30),
        ) {
            let start = Instant::now();
            let mut wheel = Wheel::new(start);
            let mut open = std::collections::BTreeMap::new();
            for (key, (after, unset)) in timers.iter().enumerate() {
                let id = wheel.set(start + ms(*after), key);
                if *unset { wheel.unset(id); } else { open.insert(key, *after); }
            }
            let mut now = 0;
            for step in steps {
                now += step;
                let fired = all_due(&mut wheel, start + ms(now));
                for key in &fired {
                    prop_assert!(open.remove(key).unwrap() <= now, "fired early");
                }
                prop_assert!(open.values().all(|at| at + 4 > now), "fired late");
                if let Some(next) = open.values().min() {
                    prop_assert!(wheel.wait(start + ms(now)).unwrap() <= ms((next + 4).saturating_sub(now)));
                }
            }
        }
    }
}
