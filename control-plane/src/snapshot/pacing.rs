//! Decides when a changed service is built: at once after a quiet time, then at intervals that grow with its endpoints.
//! So a huge service that changes all the time costs a bounded share of a core and does not delay others. Pure.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{
    names::ServiceName,
    registry::{Batch, ChangedInstances},
};

/// How long a service rests after a build, per endpoint: one of 100 rests for 2.5 ms, which nobody notices, one of
/// 10,000 for 250 ms. An endpoint costs well under a microsecond in a build, and a few in the push of the result.
const PAUSE_PER_ENDPOINT: Duration = Duration::from_micros(25);
/// Longest rest, whatever the number of endpoints.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// A shorter rest is left out.
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// A service that changed and is not built yet.
#[derive(Debug)]
struct Waiting {
    /// None: only its record changed.
    changed: Option<ChangedInstances>,
    /// The newest snapshot has the service as it was at this revision.
    since: u64,
}

#[derive(Debug, Default)]
pub(super) struct Pacing {
    /// Bounded by the services of the mesh.
    waiting: BTreeMap<ServiceName, Waiting>,
    /// The services that rest, and until when.
    resting: BTreeMap<ServiceName, Instant>,
    /// The revision of the last batch.
    revision: u64,
}

impl Pacing {
    /// Everything is built up to this revision.
    pub(super) fn new(revision: u64) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    pub(super) fn put(&mut self, batch: Batch) {
        let since = self.revision;
        let mut instances = batch.instances;
        for service in batch.services {
            let changed = instances.remove(&service);
            match self.waiting.get_mut(&service) {
                None => {
                    self.waiting.insert(service, Waiting { changed, since });
                }
                Some(waiting) => {
                    if let Some(changed) = changed {
                        waiting.changed.get_or_insert_default().merge(changed);
                    }
                }
            }
        }
        self.revision = self.revision.max(batch.revision.0);
    }

    /// The services to build now, with what changed in them.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(ServiceName, Option<ChangedInstances>)> {
        self.resting.retain(|_, until| *until > now);
        let resting = &self.resting;
        let due = self
            .waiting
            .extract_if(.., |service, _| !resting.contains_key(service));
        due.map(|(service, waiting)| (service, waiting.changed))
            .collect()
    }

    /// A service with this number of endpoints was built: it rests.
    pub(super) fn built(&mut self, service: ServiceName, endpoints: usize, now: Instant) {
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX);
        let rest = PAUSE_PER_ENDPOINT.saturating_mul(endpoints).min(MAX_PAUSE);
        if rest >= MIN_PAUSE {
            self.resting.insert(service, now + rest);
        }
    }

    /// When the next waiting service has rested; none if none waits.
    pub(super) fn next(&self) -> Option<Instant> {
        let waiting = self.waiting.keys();
        waiting
            .filter_map(|service| self.resting.get(service).copied())
            .min()
    }

    /// Everything up to this revision is built.
    pub(super) fn complete(&self) -> u64 {
        let waiting = self.waiting.values().map(|waiting| waiting.since);
        waiting.min().unwrap_or(self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Revision;

    fn batch(revision: u64, service: &str) -> Batch {
        let name = ServiceName::parse(service).unwrap();
        let changed = ChangedInstances::These([("a".into(), revision.to_string().into())].into());
        Batch {
            revision: Revision(revision),
            services: [name.clone()].into(),
            instances: [(name, changed)].into(),
            ..Batch::default()
        }
    }

    fn names(due: &[(ServiceName, Option<ChangedInstances>)]) -> Vec<&str> {
        due.iter().map(|(name, _)| name.service.as_str()).collect()
    }

    #[test]
    fn a_huge_service_rests_and_a_small_one_does_not_wait_for_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pacing = Pacing::new(1);
        pacing.put(batch(2, "huge"));
        assert_eq!(
            names(&pacing.due(at(0))),
            ["huge"],
            "after a quiet time at once"
        );
        pacing.built(ServiceName::parse("huge").unwrap(), 10_000, at(0));
        assert_eq!(pacing.complete(), 2);
        pacing.put(batch(3, "small"));
        pacing.put(batch(4, "huge"));
        pacing.put(batch(5, "huge"));
        assert_eq!(names(&pacing.due(at(1))), ["small"]);
        pacing.built(ServiceName::parse("small").unwrap(), 10, at(1));
        assert_eq!(pacing.complete(), 3, "what is not built is not claimed");
        pacing.put(batch(6, "small"));
        assert_eq!(names(&pacing.due(at(2))), ["small"], "it does not rest");
        assert_eq!(pacing.next(), Some(at(250)));
        assert_eq!(names(&pacing.due(at(249))), [""; 0]);
        let due = pacing.due(at(250));
        let places = ["4", "5"].map(|id| ("a".into(), id.into()));
        let together = ChangedInstances::These(places.into());
        assert_eq!(due, [(ServiceName::parse("huge").unwrap(), Some(together))]);
        assert_eq!((pacing.complete(), pacing.next()), (6, None));
    }

    #[test]
    fn nobody_waits_longer_than_a_second() {
        let start = Instant::now();
        let mut pacing = Pacing::new(1);
        pacing.built(ServiceName::parse("endless").unwrap(), usize::MAX, start);
        pacing.put(batch(2, "endless"));
        assert_eq!(pacing.next(), Some(start + MAX_PAUSE));
    }
}
