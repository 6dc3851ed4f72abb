//! Peak EWMA and two choices together over time: a service of several endpoints under load, with a given clock and
//! given random numbers.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::{Endpoint, EndpointSet, endpoints::Candidates, ewma::PeakEwma, pick::pick};

const MS: Duration = Duration::from_millis(1);

struct Bench {
    candidates: Candidates,
    /// By uid: estimate, calls in flight.
    loads: BTreeMap<u64, (PeakEwma, u32)>,
    /// Calls in flight: when the call ends, the uid, when it began.
    under_way: Vec<(Instant, u64, Instant)>,
    now: Instant,
    rng: SmallRng,
}

impl Bench {
    fn new(endpoints: usize) -> Self {
        Self::weighing(&vec![1; endpoints])
    }

    fn weighing(weights: &[u32]) -> Self {
        let endpoint = |(uid, &weight)| {
            Arc::new(Endpoint {
                weight,
                ..Endpoint::of_test(uid)
            })
        };
        let endpoints = (0..).zip(weights).map(endpoint).collect();
        Self {
            candidates: Candidates::new(&EndpointSet { endpoints }, "", "", &[]),
            loads: BTreeMap::new(),
            under_way: Vec::new(),
            now: Instant::now(),
            rng: SmallRng::seed_from_u64(11),
        }
    }

    /// Runs `callers` that call without a pause for `span`; returns the number of calls to each endpoint.
    fn run(
        &mut self,
        span: Duration,
        callers: usize,
        latency: impl Fn(u64) -> Duration,
    ) -> Vec<u32> {
        let mut counts = vec![0; self.candidates.groups()[0].members.len()];
        let end = self.now + span;
        while self.now < end {
            while self.under_way.len() < callers {
                let (loads, now, rng) = (&self.loads, self.now, &mut self.rng);
                let cost = |e: &Endpoint| {
                    let (ewma, pending) = loads.get(&e.uid).copied().unwrap_or_default();
                    Some(ewma.cost(pending, e.weight, now))
                };
                let uid = pick(&self.candidates, now, cost, |n| rng.random_range(0..n))
                    .unwrap()
                    .uid;
                counts[usize::try_from(uid).unwrap()] += 1;
                self.loads.entry(uid).or_default().1 += 1;
                self.under_way
                    .push((self.now + latency(uid), uid, self.now));
            }
            self.under_way.sort_unstable();
            let (at, uid, began) = self.under_way.remove(0);
            self.now = at;
            let load = self.loads.get_mut(&uid).unwrap();
            load.0.observe(at - began, at);
            load.1 -= 1;
        }
        counts
    }

    fn was_slow(&mut self, uid: u64, latency: Duration) {
        let now = self.now;
        self.loads.entry(uid).or_default().0.observe(latency, now);
    }
}

#[test]
fn one_that_was_slow_once_is_back_within_seconds() {
    for (callers, latency) in [(1, MS), (1, MS * 5), (16, MS * 5), (64, MS * 20)] {
        let mut bench = Bench::new(4);
        bench.was_slow(0, MS * 500);
        let first = bench.run(MS * 6000, callers, |_| latency);
        let then = bench.run(MS * 2000, callers, |_| latency);
        let all: u32 = then.iter().sum();
        assert!(
            then[0] * 5 > all,
            "{callers} callers, {latency:?}: {first:?}, then {then:?}"
        );
    }
}

#[test]
fn one_that_is_slow_gets_a_call_now_and_then_and_few_callers_notice() {
    let latency = |uid| if uid == 0 { MS * 300 } else { MS * 5 };
    let mut bench = Bench::new(4);
    bench.run(MS * 1000, 1, latency);
    // A minute of one serial caller: at least one call per time constant, about a ninth of its time.
    let counts = bench.run(MS * 60_000, 1, latency);
    assert!((12..=27).contains(&counts[0]), "{counts:?}");
    // Many callers: one call in flight to measure the endpoint.
    let mut bench = Bench::new(4);
    bench.run(MS * 1000, 32, latency);
    let counts = bench.run(MS * 60_000, 32, latency);
    let all: u32 = counts.iter().sum();
    assert!(counts[0] >= 12 && counts[0] * 100 < all, "{counts:?}");
}

#[test]
fn each_gets_its_share_by_weight_from_few_callers_and_from_many() {
    for callers in [1, 2, 8, 64] {
        for latency in [MS / 5, MS * 50] {
            let mut bench = Bench::weighing(&[1, 2, 3]);
            bench.run(MS * 2000, callers, |_| latency);
            let counts = bench.run(MS * 10_000, callers, |_| latency);
            let all: u32 = counts.iter().sum();
            for (uid, count) in (1..).zip(&counts) {
                let share = f64::from(*count) / f64::from(all) * 6.0 / f64::from(uid);
                assert!(
                    (0.75..1.3).contains(&share),
                    "{callers} callers, {latency:?}: {counts:?}"
                );
            }
        }
    }
}
