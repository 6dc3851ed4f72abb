//! The leases of an engine and when each expires. Pure: `now` is passed in and is monotonic. This module does not know
//! keys and storage.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::LeaseId;

/// The longest time between two checks while there are leases.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// If a check comes this long after the last one, the process itself was stalled (stopped, starved, or waiting for a
/// hung disk). Nobody could renew a lease meanwhile, so that time does not count against the leases.
const STALL_THRESHOLD: Duration = Duration::from_millis(1500);

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Leases {
    live: BTreeMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(Instant, LeaseId)>,
    checked: Instant,
}

impl Leases {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            live: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            checked: now,
        }
    }

    pub(crate) fn grant(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        self.end(id);
        if self.live.is_empty() {
            self.checked = now; // no check was due before
        }
        let deadline = now + ttl;
        self.live.insert(id, Lease { ttl, deadline });
        self.by_deadline.insert((deadline, id));
    }

    /// False if the lease does not exist, or no longer.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> bool {
        let Some(lease) = self.live.get_mut(&id) else {
            return false;
        };
        self.by_deadline.remove(&(lease.deadline, id));
        // After a stall the deadline may be more than a TTL away.
        lease.deadline = lease.deadline.max(now + lease.ttl);
        self.by_deadline.insert((lease.deadline, id));
        true
    }

    pub(crate) fn end(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.live.remove(&id) else {
            return false;
        };
        self.by_deadline.remove(&(lease.deadline, id))
    }

    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.live.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    /// When to check next, if there are leases.
    pub(crate) fn next_check(&self, now: Instant) -> Option<Instant> {
        let (deadline, _) = self.by_deadline.first()?;
        Some((*deadline).min(now + TICK))
    }

    /// The expired leases; the caller ends them.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<LeaseId> {
        let since = now.saturating_duration_since(self.checked);
        self.checked = now;
        if since > STALL_THRESHOLD && !self.live.is_empty() {
            tracing::warn!(
                ?since,
                "the store was stalled; its leases are extended by that time"
            );
            self.postpone(since);
        }
        self.by_deadline
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, id)| *id)
            .collect()
    }

    fn postpone(&mut self, by: Duration) {
        self.by_deadline.clear();
        for (id, lease) in &mut self.live {
            lease.deadline += by;
            self.by_deadline.insert((lease.deadline, *id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const A: LeaseId = LeaseId(1);

    fn looks(leases: &mut Leases, from: Instant, to: Instant) -> Vec<LeaseId> {
        let mut now = from;
        while now < to {
            now = (now + TICK).min(to);
            let expired = leases.expired(now);
            if !expired.is_empty() {
                return expired;
            }
        }
        vec![]
    }

    #[test]
    fn a_lease_lives_for_its_ttl_after_the_last_renewal() {
        let start = Instant::now();
        let mut leases = Leases::new(start);
        leases.grant(A, TTL, start);
        let at = start + Duration::from_secs(9);
        assert_eq!(looks(&mut leases, start, at), []);
        assert!(leases.keep_alive(A, at));
        let later = at + Duration::from_millis(9_999);
        assert_eq!(looks(&mut leases, at, later), []);
        assert_eq!(
            looks(&mut leases, later, later + Duration::from_millis(1)),
            [A]
        );
        assert!(leases.end(A));
        assert!(!leases.keep_alive(A, later));
        assert_eq!(leases.next_check(later), None);
    }

    #[test]
    fn time_in_which_the_process_stood_still_is_not_counted() {
        let start = Instant::now();
        let mut leases = Leases::new(start);
        leases.grant(A, TTL, start);
        let woken = start + Duration::from_secs(60);
        assert_eq!(leases.expired(woken), []);
        assert!(
            leases.keep_alive(A, woken),
            "the beats that waited in the socket are in time"
        );
        assert_eq!(
            looks(&mut leases, woken, woken + Duration::from_secs(9)),
            []
        );
        assert_eq!(
            looks(&mut leases, woken + Duration::from_secs(9), woken + TTL),
            [A]
        );
    }

    #[test]
    fn it_is_looked_at_often_enough_to_notice_a_stall() {
        let start = Instant::now();
        let mut leases = Leases::new(start);
        leases.grant(A, TTL, start);
        assert_eq!(leases.next_check(start), Some(start + TICK));
        let near = start + TTL - Duration::from_millis(100);
        assert_eq!(leases.next_check(near), Some(start + TTL));
    }
}
