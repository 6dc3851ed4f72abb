//! Power of two choices: draws two endpoints by weight and takes the cheaper one. Takes groups of candidates, costs and
//! random numbers; gives one endpoint. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing".
//! No clock and no sockets: the cost says how loaded an endpoint is, and `None` that it cannot be used now.

use std::sync::Arc;
use std::time::Instant;

use super::endpoints::{Candidates, Endpoint, Group};
use super::slow_start;

/// Chooses an endpoint of the nearest group that has a usable one. `cost` gives the cost of one more call, which is
/// equal for endpoints that are loaded in proportion to their weights, or `None` if the endpoint cannot be used.
/// `below(n)` gives a random number below n (n > 0). `now` gives the progress of slow starts.
pub fn pick(
    candidates: &Candidates,
    now: Instant,
    cost: impl Fn(&Endpoint) -> Option<f64>,
    mut below: impl FnMut(u64) -> u64,
) -> Option<&Arc<Endpoint>> {
    candidates
        .groups()
        .iter()
        .find_map(|group| pick_in(group, now, &cost, &mut below))
}

fn pick_in<'c>(
    group: &'c Group,
    now: Instant,
    cost: &impl Fn(&Endpoint) -> Option<f64>,
    below: &mut impl FnMut(u64) -> u64,
) -> Option<&'c Arc<Endpoint>> {
    if let [(only, _)] = group.members.as_slice() {
        return cost(only).map(|_| only);
    }
    let (mut winner, mut other) = choose_two(group, cost, below)?;
    if group.warming.is_empty() {
        return Some(winner);
    }
    // If an endpoint in slow start wins, it gets the call with the probability of its share; otherwise the other one
    // does. So the choice between warm endpoints still depends on their load only.
    for _ in 0..ADMISSIONS {
        if is_admitted(group, winner, now, below) {
            return Some(winner);
        }
        if let Some(other) = other.filter(|other| is_admitted(group, other, now, below)) {
            return Some(other);
        }
        (winner, other) = choose_two(group, cost, below)?;
    }
    // Nearly all are in slow start: the few others must not get all calls.
    Some(winner)
}

/// Pairs that are drawn to find an endpoint that is admitted.
const ADMISSIONS: usize = 3;

fn is_admitted(
    group: &Group,
    endpoint: &Endpoint,
    now: Instant,
    below: &mut impl FnMut(u64) -> u64,
) -> bool {
    const WHOLE: u32 = 1 << 20;
    let Some(since) = slow_start::since(&group.warming, endpoint.uid) else {
        return true;
    };
    let share = slow_start::share(since, now) * f64::from(WHOLE);
    share >= f64::from(WHOLE) || (below(u64::from(WHOLE)) as f64) < share
}

/// Draws two usable endpoints; returns the cheaper one, and the other if there is one.
fn choose_two<'c>(
    group: &'c Group,
    cost: &impl Fn(&Endpoint) -> Option<f64>,
    below: &mut impl FnMut(u64) -> u64,
) -> Option<(&'c Arc<Endpoint>, Option<&'c Arc<Endpoint>>)> {
    let (first, a) = draw(group, None, cost, below)?;
    // If costs are about equal, the first one wins: it was drawn by weight, so calls are distributed by weight, and a
    // slightly faster endpoint does not get all of them.
    match draw(group, Some(first), cost, below) {
        Some((second, b)) if b * COST_RATIO < a => Some((second, Some(first))),
        Some((second, _)) => Some((first, Some(second))),
        None => Some((first, None)),
    }
}

/// Draws a usable endpoint other than `other`. After an unusable one it draws again, and in the end compares all:
/// otherwise `other` would get the call without a comparison.
fn draw<'c>(
    group: &'c Group,
    other: Option<&Arc<Endpoint>>,
    cost: &impl Fn(&Endpoint) -> Option<f64>,
    below: &mut impl FnMut(u64) -> u64,
) -> Option<(&'c Arc<Endpoint>, f64)> {
    let is_other = |endpoint: &Arc<Endpoint>| other.is_some_and(|it| Arc::ptr_eq(it, endpoint));
    let (mut same, mut unusable) = (0, 0);
    while same <= DISTINCT_TRIES && unusable <= USABLE_TRIES {
        let endpoint = sample(group, below)?;
        if is_other(endpoint) {
            same += 1;
        } else if let Some(cost) = cost(endpoint) {
            return Some((endpoint, cost));
        } else {
            unusable += 1;
        }
    }
    match unusable {
        0 => None,
        _ => cheapest(group, |endpoint| match is_other(endpoint) {
            true => None,
            false => cost(endpoint),
        }),
    }
}

/// How many times the cost of the other endpoint makes the first one lose. Less than 2, so that one call in flight
/// counts against none.
const COST_RATIO: f64 = 1.9;
/// Draws for a second endpoint that differs from the first. A very heavy one may win all of them, which is right.
const DISTINCT_TRIES: usize = 4;
/// Draws for a usable endpoint.
const USABLE_TRIES: usize = 8;

#[inline]
fn sample<'c>(group: &'c Group, below: &mut impl FnMut(u64) -> u64) -> Option<&'c Arc<Endpoint>> {
    let total = group.total_weight();
    let point = if total == 0 {
        return None;
    } else {
        below(total)
    };
    let at = group.members.partition_point(|(_, sum)| *sum <= point);
    group.members.get(at).map(|(endpoint, _)| endpoint)
}

/// Compares all endpoints.
fn cheapest(
    group: &Group,
    cost: impl Fn(&Arc<Endpoint>) -> Option<f64>,
) -> Option<(&Arc<Endpoint>, f64)> {
    let usable = group
        .members
        .iter()
        .filter_map(|(endpoint, _)| cost(endpoint).map(|cost| (endpoint, cost)));
    usable.min_by(|(_, a), (_, b)| a.total_cmp(b))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::balance::endpoints::{EndpointSet, Health};

    fn endpoint(uid: u64, weight: u32, health: Health, zone: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            weight,
            health,
            zone: zone.into(),
            ..Endpoint::of_test(uid)
        })
    }

    fn shares(set: Vec<Arc<Endpoint>>, cost: impl Fn(&Endpoint) -> Option<f64>) -> Vec<u32> {
        shares_at(set, &[], Instant::now(), cost)
    }

    fn shares_at(
        set: Vec<Arc<Endpoint>>,
        warming: &[(u64, Instant)],
        now: Instant,
        cost: impl Fn(&Endpoint) -> Option<f64>,
    ) -> Vec<u32> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = vec![0; set.len() + 1];
        let candidates = Candidates::new(&EndpointSet { endpoints: set }, "", "z", warming);
        for _ in 0..30_000 {
            let picked = pick(&candidates, now, &cost, |n| rng.random_range(0..n));
            let at = picked.map_or(0, |e| e.uid);
            counts[usize::try_from(at).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn equal_endpoints_share_by_weight() {
        let set = vec![
            endpoint(1, 1, Health::Healthy, "z"),
            endpoint(2, 2, Health::Unknown, "z"),
            endpoint(3, 1, Health::Healthy, "z"),
        ];
        let counts = shares(set, |_| Some(1.0));
        assert!((6_500..8_500).contains(&counts[1]), "{counts:?}");
        assert!((14_000..16_000).contains(&counts[2]), "{counts:?}");
    }

    #[test]
    fn the_loaded_one_is_left_alone() {
        let set = vec![
            endpoint(1, 1, Health::Healthy, "z"),
            endpoint(2, 1, Health::Healthy, "z"),
        ];
        let counts = shares(set, |e| Some(if e.uid == 1 { 9.0 } else { 1.0 }));
        assert!(counts[1] < 2_500, "{counts:?}");
    }

    #[test]
    fn what_takes_no_calls_gets_none() {
        let set = vec![
            endpoint(1, 1, Health::Draining, "z"),
            endpoint(2, 1, Health::Unhealthy, "z"),
            endpoint(3, 1, Health::Healthy, "z"),
            endpoint(4, 100, Health::Healthy, "z"),
        ];
        let counts = shares(set, |e| (e.uid != 4).then_some(1.0));
        assert_eq!(counts, [0, 0, 0, 30_000, 0]);
    }

    #[test]
    fn of_those_that_can_be_used_the_loaded_one_is_left_alone() {
        let set: Vec<_> = (1..=4)
            .map(|uid| endpoint(uid, 1, Health::Healthy, "z"))
            .collect();
        let counts = shares(set, |e| match e.uid {
            1 | 2 => None,
            3 => Some(9.0),
            _ => Some(1.0),
        });
        assert!(counts[1] + counts[2] == 0 && counts[3] < 100, "{counts:?}");
    }

    #[test]
    fn one_in_slow_start_gets_a_growing_part_of_its_share() {
        let start = Instant::now();
        let set: Vec<_> = (1..=4)
            .map(|uid| endpoint(uid, 1, Health::Healthy, "z"))
            .collect();
        let mut last = 0;
        for (seconds, of_share) in [(0, 0.1), (3, 0.3), (6, 0.6), (10, 1.0)] {
            let now = start + Duration::from_secs(seconds);
            let counts = shares_at(set.clone(), &[(4, start)], now, |_| Some(1.0));
            let part = f64::from(counts[4]) / 7_500.0;
            assert!(
                (part - of_share).abs() < 0.1 && counts[4] > last,
                "{seconds} s: {counts:?}"
            );
            last = counts[4];
            // However idle it is, it is not flooded: it gets at most its share of the pairs in which it is drawn.
            let counts = shares_at(set.clone(), &[(4, start)], now, |e| {
                Some(if e.uid == 4 { 1.0 } else { 50.0 })
            });
            let part = f64::from(counts[4]) / 15_000.0;
            assert!(part < of_share + 0.1, "{seconds} s: {counts:?}");
        }
    }

    #[test]
    fn slow_start_never_refuses_a_call() {
        let now = Instant::now();
        let warming: Vec<_> = (1..=10).map(|uid| (uid, now)).collect();
        let set: Vec<_> = (1..=10)
            .map(|uid| endpoint(uid, 1, Health::Healthy, "z"))
            .collect();
        // Alone; all of them; and together with one that cannot be used.
        assert_eq!(
            shares_at(set[..1].to_vec(), &warming, now, |_| Some(1.0)),
            [0, 30_000]
        );
        let counts = shares_at(set.clone(), &warming, now, |_| Some(1.0));
        assert!(
            counts[0] == 0 && counts[1..].iter().all(|c| *c > 2_500),
            "{counts:?}"
        );
        let counts = shares_at(set[..2].to_vec(), &warming[..1], now, |e| {
            (e.uid == 1).then_some(1.0)
        });
        assert_eq!(counts, [0, 30_000, 0]);
        // Two warm endpoints with eight new ones get more than their share, but not everything.
        let counts = shares_at(set, &warming[..8], now, |_| Some(1.0));
        let warm = counts[9] + counts[10];
        assert!((12_000..24_000).contains(&warm), "{counts:?}");
    }

    #[test]
    fn the_next_locality_is_used_only_when_the_nearest_has_none() {
        let far = endpoint(2, 50, Health::Healthy, "y");
        let both = vec![endpoint(1, 1, Health::Healthy, "z"), Arc::clone(&far)];
        assert_eq!(shares(both.clone(), |_| Some(1.0)), [0, 30_000, 0]);
        assert_eq!(
            shares(both, |e| (e.uid == 2).then_some(1.0)),
            [0, 0, 30_000]
        );
        assert_eq!(shares(vec![], |_| Some(1.0)), [30_000]);
    }
}
