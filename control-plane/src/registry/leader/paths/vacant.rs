//! How long claims have been vacant, that is, without an instance that serves them, and which of them are to be deleted
//! or recorded. Pure: `now` is passed in and is monotonic; the times that former leaders recorded are added.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use heddle_proto::store::v1::ClaimRecord;

use super::{PathOf, RETRY_PAUSE};
use crate::registry::options::ClaimOptions;

#[derive(Debug)]
struct Since {
    seen: Instant,
    /// How long it had been vacant before `seen`, as a former leader recorded.
    before: Duration,
    noted: Duration,
    /// When `due` last returned it.
    named: Option<Instant>,
}

impl Since {
    fn age(&self, now: Instant) -> Duration {
        self.before + now.saturating_duration_since(self.seen)
    }

    /// When the claim will have this age.
    fn reaches(&self, age: Duration) -> Option<Instant> {
        self.seen.checked_add(age.saturating_sub(self.before))
    }
}

/// The vacant claims; at most as many as the store has.
#[derive(Debug)]
pub(super) struct Vacant {
    options: ClaimOptions,
    claims: BTreeMap<PathOf, Since>,
}

impl Vacant {
    pub(super) fn new(options: ClaimOptions) -> Self {
        Self {
            options,
            claims: BTreeMap::new(),
        }
    }

    pub(super) fn on_vacant(&mut self, path: &PathOf, record: &ClaimRecord, now: Instant) {
        if !self.claims.contains_key(path) {
            let noted = Duration::from_millis(record.vacant_ms);
            let since = Since {
                seen: now,
                before: noted,
                noted,
                named: None,
            };
            self.claims.insert(path.clone(), since);
        }
    }

    /// An instance serves the path, or the store has no such claim.
    pub(super) fn on_other(&mut self, path: &PathOf) {
        self.claims.remove(path);
    }

    /// When `due` or `due_for_note` next returns something, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        let ClaimOptions {
            release_after,
            note_every,
            ..
        } = self.options;
        let when = |since: &Since| match since.named {
            Some(at) => at.checked_add(RETRY_PAUSE),
            None => since.reaches(release_after.min(since.noted.saturating_add(note_every))),
        };
        self.claims.values().filter_map(when).min()
    }

    /// The claims to delete now: those that have been vacant for too long, and the oldest ones beyond the limit.
    pub(super) fn due(&mut self, now: Instant) -> Vec<PathOf> {
        let after = self.options.release_after;
        let too_many = self
            .claims
            .len()
            .saturating_sub(self.options.at_most_vacant);
        let mut oldest: Vec<_> = self.claims.iter_mut().collect();
        if too_many > 0 {
            oldest.sort_by_key(|(_, since)| std::cmp::Reverse(since.age(now)));
        }
        let mut due = Vec::new();
        for (place, (path, since)) in oldest.into_iter().enumerate() {
            if place >= too_many && since.age(now) < after {
                since.named = None;
                continue;
            }
            let waits = |at| now.saturating_duration_since(at) < RETRY_PAUSE;
            if !since.named.is_some_and(waits) {
                since.named = Some(now);
                due.push(path.clone());
            }
        }
        due
    }

    /// The claims whose vacant time is to be recorded now.
    pub(super) fn due_for_note(&mut self, now: Instant) -> Vec<(PathOf, Duration)> {
        let every = self.options.note_every;
        let mut due = Vec::new();
        for (path, since) in &mut self.claims {
            let age = since.age(now);
            if since.named.is_none() && age.saturating_sub(since.noted) >= every {
                since.noted = age;
                due.push((path.clone(), age));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ServiceName;

    fn path(n: usize) -> PathOf {
        let service = ServiceName::parse(&format!("s{n}")).unwrap();
        ("p.P".into(), service)
    }

    fn vacant(at_most_vacant: usize) -> (Vacant, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let options = ClaimOptions {
            at_most_vacant,
            ..ClaimOptions::default()
        };
        let at = move |seconds| start + Duration::from_secs(seconds);
        (Vacant::new(options), at)
    }

    fn noted(seconds: u64) -> ClaimRecord {
        ClaimRecord {
            vacant_ms: seconds * 1000,
            ..ClaimRecord::default()
        }
    }

    #[test]
    fn a_claim_is_due_ten_minutes_after_its_last_instance() {
        let (mut vacant, at) = vacant(10);
        vacant.on_vacant(&path(1), &noted(0), at(0));
        vacant.on_vacant(&path(1), &noted(0), at(500));
        assert_eq!(vacant.due(at(599)), []);
        assert_eq!(vacant.due(at(600)), [path(1)]);
        assert_eq!(vacant.due(at(601)), [], "it is under way");
        assert_eq!(vacant.next(), Some(at(602)));
        assert_eq!(vacant.due(at(602)), [path(1)], "it was not deleted");
        vacant.on_other(&path(1));
        assert_eq!((vacant.next(), vacant.due(at(9999))), (None, vec![]));
    }

    #[test]
    fn the_next_leader_counts_on_from_what_was_noted() {
        let (mut first, at) = vacant(10);
        first.on_vacant(&path(1), &noted(0), at(0));
        assert_eq!(first.next(), Some(at(60)));
        assert_eq!(first.due_for_note(at(59)), []);
        assert_eq!(
            first.due_for_note(at(60)),
            [(path(1), Duration::from_secs(60))]
        );
        assert_eq!(first.due_for_note(at(61)), []);
        let (mut second, _) = vacant(10);
        second.on_vacant(&path(1), &noted(550), at(100));
        assert_eq!(second.next(), Some(at(150)));
        assert_eq!(second.due(at(149)), []);
        assert_eq!(second.due(at(150)), [path(1)]);
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let (mut vacant, at) = vacant(2);
        for (n, since) in [(7, 0), (3, 1), (5, 2)] {
            vacant.on_vacant(&path(n), &noted(0), at(since));
        }
        assert_eq!(vacant.due(at(2)), [path(7)]);
        vacant.on_other(&path(7));
        assert_eq!(vacant.due(at(2)), []);
    }
}
