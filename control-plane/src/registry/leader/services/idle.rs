//! Decides when services without instances are forgotten. Pure: `now` is passed in and is monotonic, so a restart
//! starts counting at zero. A service that is due is returned again until it is reported as gone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{names::ServiceName, registry::options::IdleOptions};

/// The pause before a service that could not be forgotten is retried.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Empty {
    since: Instant,
    /// When `due` last returned it.
    named: Option<Instant>,
}

/// The services without instances; at most as many as the view has.
#[derive(Debug)]
pub(super) struct Idle {
    options: IdleOptions,
    empty: BTreeMap<ServiceName, Empty>,
}

impl Idle {
    pub(super) fn new(options: IdleOptions) -> Self {
        Self {
            options,
            empty: BTreeMap::new(),
        }
    }

    /// The service is known and has no instance.
    pub(super) fn on_empty(&mut self, service: &ServiceName, now: Instant) {
        self.empty.entry(service.clone()).or_insert(Empty {
            since: now,
            named: None,
        });
    }

    /// The service has instances, or is forgotten.
    pub(super) fn on_other(&mut self, service: &ServiceName) {
        self.empty.remove(service);
    }

    /// When `due` next returns something, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        let when = |empty: &Empty| {
            empty.named.map_or_else(
                || empty.since.checked_add(self.options.forget_after),
                |at| at.checked_add(RETRY_PAUSE),
            )
        };
        self.empty.values().filter_map(when).min()
    }

    /// The services to forget now: those that have been empty for too long, and the oldest ones beyond the limit.
    pub(super) fn due(&mut self, now: Instant) -> Vec<ServiceName> {
        let after = self.options.forget_after;
        let too_many = self.empty.len().saturating_sub(self.options.at_most);
        let mut oldest: Vec<_> = self.empty.iter_mut().collect();
        oldest.sort_by_key(|(_, empty)| empty.since);
        let mut due = Vec::new();
        for (place, (service, empty)) in oldest.into_iter().enumerate() {
            if place >= too_many && now.saturating_duration_since(empty.since) < after {
                empty.named = None;
                continue;
            }
            let waits = |at| now.saturating_duration_since(at) < RETRY_PAUSE;
            if !empty.named.is_some_and(waits) {
                empty.named = Some(now);
                due.push(service.clone());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> ServiceName {
        ServiceName::parse(&format!("s{n}")).unwrap()
    }

    fn idle(at_most: usize) -> (Idle, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let options = IdleOptions {
            at_most,
            ..IdleOptions::default()
        };
        let at = move |seconds| start + Duration::from_secs(seconds);
        (Idle::new(options), at)
    }

    #[test]
    fn a_service_is_forgotten_an_hour_after_its_last_instance() {
        let (mut idle, at) = idle(10);
        idle.on_empty(&name(1), at(0));
        idle.on_empty(&name(1), at(3000));
        assert_eq!(idle.next(), Some(at(3600)));
        assert_eq!(idle.due(at(3599)), []);
        assert_eq!(idle.due(at(3600)), [name(1)]);
        idle.on_other(&name(1));
        assert_eq!((idle.next(), idle.due(at(9999))), (None, vec![]));
    }

    #[test]
    fn one_that_had_instances_meanwhile_begins_anew() {
        let (mut idle, at) = idle(10);
        idle.on_empty(&name(1), at(0));
        idle.on_other(&name(1));
        idle.on_empty(&name(1), at(100));
        assert_eq!(idle.due(at(3650)), []);
        assert_eq!(idle.due(at(3700)), [name(1)]);
    }

    #[test]
    fn of_too_many_the_oldest_go_and_no_more_than_that() {
        let (mut idle, at) = idle(2);
        for (service, since) in [(7, 0), (3, 1), (5, 2)] {
            idle.on_empty(&name(service), at(since));
        }
        assert_eq!(idle.due(at(2)), [name(7)]);
        idle.on_other(&name(7));
        assert_eq!(idle.due(at(2)), []);
        idle.on_empty(&name(9), at(3));
        assert_eq!(idle.due(at(3)), [name(3)]);
    }

    #[test]
    fn who_could_not_be_forgotten_is_named_again_while_it_is_due() {
        let (mut idle, at) = idle(1);
        idle.on_empty(&name(1), at(0));
        idle.on_empty(&name(2), at(0));
        assert_eq!(idle.due(at(5)), [name(1)]);
        assert_eq!(idle.due(at(6)), []);
        assert_eq!(idle.next(), Some(at(7)));
        assert_eq!(idle.due(at(7)), [name(1)]);
        // The limit is no longer exceeded.
        idle.on_other(&name(2));
        assert_eq!(idle.due(at(8)), []);
        assert_eq!(idle.next(), Some(at(3600)));
    }
}
