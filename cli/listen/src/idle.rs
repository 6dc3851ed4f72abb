//! Orders the connections that may be closed for a new one, the idlest first: those without any call before those with
//! one, and within each group the one that has been idle longest. Input: keys and times. No clock is read, nothing is
//! closed.

use std::{cmp::Reverse, collections::BinaryHeap, time::Instant};

/// Since when a connection has had no call. The smallest value is the idlest connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Idle {
    /// Whether it has had a call. Must be the first field: the order of the fields defines the order of connections.
    pub called: bool,
    /// When it was accepted, or when its last call ended.
    pub since: Instant,
}

/// The state of a connection when the queue asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Idle(Idle),
    /// It has a call in flight. Its owner pushes it again when it is idle.
    Busy,
    /// It has ended.
    Gone,
}

/// A priority queue of connections; each has at most one entry. An entry may be outdated and then shows a connection as
/// idler than it is. It is checked when it is popped, so that a call does not have to update the queue.
#[derive(Debug)]
pub struct IdleQueue<K> {
    entries: BinaryHeap<Reverse<(Idle, K)>>,
}

impl<K: Copy + Ord> Default for IdleQueue<K> {
    fn default() -> Self {
        Self {
            entries: BinaryHeap::new(),
        }
    }
}

impl<K: Copy + Ord> IdleQueue<K> {
    /// Adds a connection that is idle and has no entry.
    pub fn push(&mut self, key: K, idle: Idle) {
        self.entries.push(Reverse((idle, key)));
    }

    /// Removes and returns the idlest connection. Entries of connections that `look` reports as busy or gone are
    /// removed too.
    pub fn pop(&mut self, mut look: impl FnMut(K) -> Activity) -> Option<K> {
        while let Some(Reverse((known, key))) = self.entries.pop() {
            match look(key) {
                Activity::Idle(now) if now <= known => return Some(key),
                Activity::Idle(now) => self.push(key, now),
                Activity::Busy | Activity::Gone => {}
            }
        }
        None
    }

    /// Removes the entries of connections that are gone once they are the majority: bounds the queue to about twice the
    /// `live` connections. As in `pop`, busy ones lose their entry too.
    pub fn prune(&mut self, live: usize, mut look: impl FnMut(K) -> Activity) {
        if self.entries.len() > 2 * live + 64 {
            self.entries
                .retain(|Reverse((_, key))| matches!(look(*key), Activity::Idle(_)));
        }
    }

    /// The number of entries, including those of connections that are gone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;

    fn idle(begin: Instant, called: bool, seconds: u64) -> Idle {
        Idle {
            called,
            since: begin + Duration::from_secs(seconds),
        }
    }

    #[test]
    fn the_idlest_goes_first_whatever_was_known_before() {
        let begin = Instant::now();
        let mut queue = IdleQueue::default();
        for key in [1, 2, 3, 4] {
            queue.push(key, idle(begin, false, 0));
        }
        let now = BTreeMap::from([
            (1, Activity::Idle(idle(begin, true, 10))),
            (2, Activity::Idle(idle(begin, true, 20))),
            (3, Activity::Idle(idle(begin, false, 0))),
            (4, Activity::Busy),
        ]);
        let mut next = || queue.pop(|key| now[&key]);
        assert_eq!(
            [next(), next(), next(), next()],
            [Some(3), Some(1), Some(2), None]
        );
    }

    #[test]
    fn one_that_was_busy_is_back_when_it_is_pushed_again() {
        let begin = Instant::now();
        let mut queue = IdleQueue::default();
        queue.push(1, idle(begin, false, 0));
        assert_eq!(queue.pop(|_| Activity::Busy), None);
        queue.push(1, idle(begin, true, 5));
        let now = Activity::Idle(idle(begin, true, 5));
        assert_eq!(queue.pop(|_| now), Some(1));
    }

    #[test]
    fn entries_of_connections_that_have_gone_do_not_pile_up() {
        let begin = Instant::now();
        let mut queue = IdleQueue::default();
        for key in 0..10_000 {
            queue.push(key, idle(begin, false, 0));
            queue.prune(1, |other| match other == key {
                true => Activity::Idle(idle(begin, false, 0)),
                false => Activity::Gone,
            });
        }
        assert!(queue.len() <= 66, "{}", queue.len());
    }
}
