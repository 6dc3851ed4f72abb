//! Slow start: an endpoint that becomes usable while others are warm gets a growing share of the calls, since its
//! caches, pools and compiled code are cold. Takes the usable endpoints of each table and `now`; gives the endpoints in
//! slow start, each with its start. No load and no sockets; `pick` applies the share.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Duration of a slow start. An endpoint that has been usable for this long is warm.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The share at the start; it grows linearly (Envoy's minimum weight and aggression 1).
pub const LEAST: f64 = 0.1;

/// The part of its share that an endpoint gets if it became usable at `since`.
#[must_use]
pub fn share(since: Instant, now: Instant) -> f64 {
    let age = now.saturating_duration_since(since);
    (age.as_secs_f64() / WINDOW.as_secs_f64()).clamp(LEAST, 1.0)
}

/// An endpoint in slow start: its uid, and since when it has been usable.
pub type Warming = (u64, Instant);

/// Since when an endpoint is in slow start, if it is in `warming`, which is sorted by uid.
#[must_use]
pub fn since(warming: &[Warming], uid: u64) -> Option<Instant> {
    let at = warming.binary_search_by_key(&uid, |(uid, _)| *uid).ok()?;
    warming.get(at).map(|(_, since)| *since)
}

#[derive(Clone, Copy, Debug)]
struct Usable {
    since: Instant,
    /// It came when others were warm. Without warm endpoints nobody could take its calls meanwhile.
    slowly: bool,
}

/// Since when the endpoints of each service have been usable.
#[derive(Debug, Default)]
pub struct SlowStart {
    services: BTreeMap<String, HashMap<u64, Usable>>,
}

impl SlowStart {
    /// Sets the usable endpoints of a service, in any order; one that was missing before starts anew. Returns those in
    /// slow start.
    pub fn usable(
        &mut self,
        service: &str,
        uids: impl Iterator<Item = u64>,
        now: Instant,
    ) -> Vec<Warming> {
        let before = self.services.remove(service).unwrap_or_default();
        let warm = |usable: &Usable| now.saturating_duration_since(usable.since) >= WINDOW;
        let mut after: HashMap<u64, Option<Usable>> =
            uids.map(|uid| (uid, before.get(&uid).copied())).collect();
        let beside_warm = after.values().flatten().any(warm);
        for usable in after.values_mut() {
            usable.get_or_insert(Usable {
                since: now,
                slowly: beside_warm,
            });
        }
        let after: HashMap<u64, Usable> = after
            .into_iter()
            .filter_map(|(uid, usable)| Some((uid, usable?)))
            .collect();
        if !after.is_empty() {
            self.services.insert(service.to_owned(), after);
        }
        self.warming(service, now)
    }

    /// The endpoints of a service in slow start, sorted by uid.
    #[must_use]
    pub fn warming(&self, service: &str, now: Instant) -> Vec<Warming> {
        let mut warming: Vec<Warming> = self
            .services
            .get(service)
            .into_iter()
            .flatten()
            .filter(|(_, usable)| usable.slowly && share(usable.since, now) < 1.0)
            .map(|(uid, usable)| (*uid, usable.since))
            .collect();
        warming.sort_unstable();
        warming
    }

    /// Treats a service as if it had never been seen.
    pub fn forget(&mut self, service: &str) {
        self.services.remove(service);
    }

    /// Removes services that no longer exist.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.services.retain(|name, _| stays(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(slow: &mut SlowStart, uids: &[u64], now: Instant) -> Vec<u64> {
        let warming = slow.usable("s", uids.iter().copied(), now);
        warming.into_iter().map(|(uid, _)| uid).collect()
    }

    #[test]
    fn only_who_comes_beside_warm_ones_warms_up() {
        let (mut slow, start) = (SlowStart::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // Start-up: there is nobody besides the first, and nobody warm besides the others.
        assert!(usable(&mut slow, &[1], at(0)).is_empty());
        assert!(usable(&mut slow, &[1, 2], at(9)).is_empty());
        assert_eq!(usable(&mut slow, &[1, 2, 3], at(12)), [3]);
        // Warm ones leave and it is alone: it is still in slow start, but there is nobody else to choose.
        assert_eq!(usable(&mut slow, &[3], at(13)), [3]);
        assert_eq!(slow.warming("s", at(21)).len(), 1);
        assert!(slow.warming("s", at(22)).is_empty());
        // One that was away starts anew.
        assert_eq!(usable(&mut slow, &[3, 1], at(30)), [1]);
    }

    #[test]
    fn all_new_ones_after_an_outage_share_at_once() {
        let (mut slow, start) = (SlowStart::default(), Instant::now());
        usable(&mut slow, &[1, 2], start);
        let later = start + WINDOW * 3;
        assert!(usable(&mut slow, &[], later).is_empty());
        assert!(usable(&mut slow, &[1, 2], later).is_empty());
        slow.retain(|name| name != "s");
        assert!(slow.services.is_empty());
    }

    #[test]
    fn the_share_grows_in_a_straight_line_from_a_tenth() {
        let start = Instant::now();
        for (seconds, expect) in [(0, 0.1), (1, 0.1), (3, 0.3), (5, 0.5), (10, 1.0), (99, 1.0)] {
            let now = start + Duration::from_secs(seconds);
            assert!((share(start, now) - expect).abs() < 1e-9, "{seconds} s");
        }
        // A clock that is slightly behind does not cause a panic.
        assert!((share(start + Duration::from_secs(1), start) - LEAST).abs() < 1e-9);
    }
}
