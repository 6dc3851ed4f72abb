//! The order in which the services of this node first claimed the paths of their proto services. It decides who owns a
//! path while no control plane does. Input: instances that join and leave, and the time (`now` is a parameter). Output:
//! numbers; the lowest is the oldest claim. A service without instances keeps its place for a while, because an upgrade
//! replaces all its instances.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::View;

/// How long a service without instances keeps its place; the same as in the control plane.
const KEPT: Duration = Duration::from_secs(600);
/// The most places without an instance; above it the oldest are forgotten earlier.
const MOST_KEPT: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
struct ClaimPosition {
    number: u64,
    instances: usize,
    /// When it was first found without an instance.
    vacant_since: Option<Instant>,
}

/// See the module documentation. Keyed by the full name of the service, then by proto service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimOrder {
    places: BTreeMap<String, BTreeMap<String, ClaimPosition>>,
    last: u64,
}

impl ClaimOrder {
    /// The number of a service's claim to the path of a proto service.
    #[must_use]
    pub fn number(&self, service: &str, proto: &str) -> Option<u64> {
        Some(self.places.get(service)?.get(proto)?.number)
    }

    /// The lowest number of a service.
    #[must_use]
    pub fn oldest(&self, service: &str) -> Option<u64> {
        let places = self.places.get(service)?.values();
        places.map(|place| place.number).min()
    }

    /// Service and proto service, the oldest claim first, for the state dir.
    #[must_use]
    pub fn in_order(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = self
            .places
            .iter()
            .flat_map(|(service, places)| {
                places
                    .iter()
                    .map(move |(proto, it)| (it.number, service, proto))
            })
            .collect();
        all.sort_unstable();
        let names = |(_, service, proto): (u64, &String, &String)| (service.clone(), proto.clone());
        all.into_iter().map(names).collect()
    }

    pub(super) fn add(&mut self, view: &View) {
        for proto in claimed(view) {
            let place = self.place(&view_service(view), proto);
            place.instances += 1;
            place.vacant_since = None;
        }
    }

    pub(super) fn remove(&mut self, view: &View) {
        let Some(places) = self.places.get_mut(&view_service(view)) else {
            return;
        };
        for proto in claimed(view) {
            if let Some(place) = places.get_mut(proto) {
                place.instances = place.instances.saturating_sub(1);
            }
        }
    }

    /// Restores the places of this node's last process, the oldest first. Called before any instance joins.
    pub(super) fn restore(&mut self, places: &[(String, String)]) {
        for (service, proto) in places {
            self.place(service, proto);
        }
    }

    /// Forgets places whose time is over and, if there are too many, the oldest. Called every few seconds.
    pub(super) fn forget(&mut self, now: Instant) {
        let mut vacant = Vec::new();
        for place in self.places.values_mut().flat_map(BTreeMap::values_mut) {
            if place.instances == 0 {
                let since = *place.vacant_since.get_or_insert(now);
                vacant.push((since, place.number));
            }
        }
        if vacant.is_empty() {
            return;
        }
        vacant.sort_unstable();
        let too_many = vacant.len().saturating_sub(MOST_KEPT);
        let is_old = |since: Instant| now.saturating_duration_since(since) >= KEPT;
        let old = vacant.partition_point(|(since, _)| is_old(*since));
        let Some(&last) = old
            .max(too_many)
            .checked_sub(1)
            .and_then(|at| vacant.get(at))
        else {
            return;
        };
        for places in self.places.values_mut() {
            let stays = |place: &ClaimPosition| {
                let since = place.vacant_since.filter(|_| place.instances == 0);
                since.is_none_or(|since| (since, place.number) > last)
            };
            places.retain(|_, place| stays(place));
        }
        self.places.retain(|_, places| !places.is_empty());
    }

    fn place(&mut self, service: &str, proto: &str) -> &mut ClaimPosition {
        let places = self.places.entry(service.to_owned()).or_default();
        let last = &mut self.last;
        places.entry(proto.to_owned()).or_insert_with(|| {
            *last += 1;
            ClaimPosition {
                number: *last,
                instances: 0,
                vacant_since: None,
            }
        })
    }
}

/// The proto services that an instance serves and claims.
fn claimed(view: &View) -> impl Iterator<Item = &str> {
    let claims = view.claims_paths();
    let protos = view.protos.iter().filter(move |_| claims);
    protos.map(|proto| proto.name.as_str())
}

fn view_service(view: &View) -> String {
    format!("{}.{}", view.instance.service, view.instance.namespace)
}

#[cfg(test)]
mod tests {
    use super::{ClaimOrder, KEPT, MOST_KEPT};
    use std::time::{Duration, Instant};

    fn names(number: usize) -> Vec<(String, String)> {
        let name = |n| (format!("s{n:04}.default"), "p.P".to_owned());
        (0..number).map(name).collect()
    }

    #[test]
    fn a_place_is_kept_for_its_time_and_of_too_many_the_oldest_go() {
        let mut order = ClaimOrder::default();
        let start = Instant::now();
        order.restore(&names(1));
        order.forget(start);
        order.restore(&names(2));
        order.forget(start + Duration::from_secs(1));
        assert_eq!(order.in_order(), names(2));
        order.forget(start + KEPT);
        assert_eq!(order.in_order(), names(2)[1..]);
        let many = names(MOST_KEPT + 3);
        order.restore(&many);
        order.forget(start + KEPT);
        // The second service has been without instances for the longest time; then come those with the lowest numbers.
        assert_eq!(order.in_order().len(), MOST_KEPT);
        assert_eq!(order.in_order().last(), many.last());
        assert_eq!(order.number("s0001.default", "p.P"), None);
    }
}
