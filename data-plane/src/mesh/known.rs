//! Keeps a service of this node known for a while after its last instance is gone, as the control plane does: callers
//! get "no endpoints" instead of "no such service", and a call by path still finds its service. Input: the services of
//! each table, and the time (`now` is a parameter). Output: the missing services are added. Pure, and bounded in number
//! and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::ServiceSpec;

/// When a service without instances is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// The most services without instances; over it those that have been empty for the longest time are forgotten.
const MAX_EMPTY: usize = 1000;

#[derive(Debug)]
struct Known {
    /// The service without its endpoints.
    spec: Arc<ServiceSpec>,
    empty_since: Option<Instant>,
}

/// Services that this node has or had instances of.
#[derive(Debug)]
pub(super) struct KnownServices {
    services: BTreeMap<String, Known>,
    pub(super) forget_after: Duration,
}

impl Default for KnownServices {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            forget_after: FORGET_AFTER,
        }
    }
}

impl KnownServices {
    /// Adds the missing services. `own` names the services that have an instance here now; all of them are in
    /// `services`.
    pub(super) fn complete(
        &mut self,
        services: &mut BTreeMap<String, Arc<ServiceSpec>>,
        own: &BTreeSet<String>,
        now: Instant,
    ) {
        for name in own {
            if let Some(spec) = services.get_mut(name) {
                self.on_used(name, spec);
            }
        }
        self.forget(own, now);
        for (name, known) in &self.services {
            services
                .entry(name.clone())
                .or_insert_with(|| Arc::clone(&known.spec));
        }
    }

    /// When the next service is forgotten, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        let since = self
            .services
            .values()
            .filter_map(|known| known.empty_since)
            .min();
        since.and_then(|since| since.checked_add(self.forget_after))
    }

    fn on_used(&mut self, name: &str, spec: &mut Arc<ServiceSpec>) {
        let known = self.services.get_mut(name);
        // The first instance after a gap has not reported yet what it serves: keep what was known.
        if let Some(known) = &known
            && spec.protos.is_empty()
            && spec.protocol == known.spec.protocol
            && !known.spec.protos.is_empty()
        {
            Arc::make_mut(spec).protos.clone_from(&known.spec.protos);
        }
        let is_same = |known: &Known| {
            (known.spec.protocol, &known.spec.protos) == (spec.protocol, &spec.protos)
        };
        match known {
            Some(known) if is_same(known) => known.empty_since = None,
            _ => {
                let spec = Arc::new(ServiceSpec {
                    endpoints: Vec::new(),
                    endpoints_known: true,
                    ..ServiceSpec::clone(spec)
                });
                let known = Known {
                    spec,
                    empty_since: None,
                };
                self.services.insert(name.to_owned(), known);
            }
        }
    }

    fn forget(&mut self, own: &BTreeSet<String>, now: Instant) {
        let mut empty = Vec::new();
        for (name, known) in self
            .services
            .iter_mut()
            .filter(|(name, _)| !own.contains(*name))
        {
            let since = *known.empty_since.get_or_insert(now);
            empty.push((since, name.clone()));
        }
        empty.sort();
        let too_many = empty.len().saturating_sub(MAX_EMPTY);
        for (index, (since, name)) in empty.into_iter().enumerate() {
            if index < too_many || now.saturating_duration_since(since) >= self.forget_after {
                self.services.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ProtoService;

    fn spec(protos: &[&str]) -> Arc<ServiceSpec> {
        let protos = protos.iter().map(|&name| ProtoService {
            name: name.to_owned(),
            ..ProtoService::default()
        });
        Arc::new(ServiceSpec {
            protos: protos.collect(),
            ..ServiceSpec::default()
        })
    }

    fn complete(
        known: &mut KnownServices,
        own: &[(&str, &[&str])],
        now: Instant,
    ) -> BTreeMap<String, Arc<ServiceSpec>> {
        let mut services = own
            .iter()
            .map(|(name, protos)| ((*name).to_owned(), spec(protos)))
            .collect();
        let names = own.iter().map(|(name, _)| (*name).to_owned()).collect();
        known.complete(&mut services, &names, now);
        services
    }

    #[test]
    fn a_service_stays_for_an_hour_after_its_last_instance() {
        let (mut known, start) = (KnownServices::default(), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        complete(&mut known, &[("a", &["a.A"])], at(0));
        assert_eq!(known.next(), None);
        for minute in [100, 130, 159] {
            let services = complete(&mut known, &[], at(minute));
            assert_eq!(services.get("a"), Some(&spec(&["a.A"])));
            assert_eq!(known.next(), Some(at(160)));
        }
        assert!(complete(&mut known, &[], at(160)).is_empty());
        assert_eq!(known.next(), None);
    }

    #[test]
    fn a_service_that_returns_has_its_protos_before_it_reports_them_and_its_time_again() {
        let (mut known, start) = (KnownServices::default(), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        complete(&mut known, &[("a", &["a.A"])], at(0));
        complete(&mut known, &[], at(1));
        let services = complete(&mut known, &[("a", &[])], at(2));
        assert_eq!(services.get("a"), Some(&spec(&["a.A"])));
        let services = complete(&mut known, &[("a", &["b.B"])], at(3));
        assert_eq!(services.get("a"), Some(&spec(&["b.B"])));
        complete(&mut known, &[], at(50));
        assert_eq!(known.next(), Some(at(110)));
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let (mut known, start) = (KnownServices::default(), Instant::now());
        let names: Vec<String> = (0..=MAX_EMPTY).map(|n| format!("{n:04}")).collect();
        let all: Vec<(&str, &[&str])> = names.iter().rev().map(|n| (n.as_str(), &[][..])).collect();
        for (second, gone) in (0..).zip([0, 1, 2, all.len()]) {
            let now = start + Duration::from_secs(second);
            let services = complete(&mut known, &all[gone..], now);
            assert!(services.len() >= MAX_EMPTY);
        }
        assert_eq!(known.services.len(), MAX_EMPTY);
        let first_gone = all[0].0;
        assert!(!known.services.contains_key(first_gone));
    }
}
