//! Passive health alone, with a given clock: runs, ejections, probes, the limit. And together with peak EWMA and two
//! choices, as callers see it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::balance::{Endpoint, EndpointSet, endpoints::Candidates, ewma::PeakEwma, pick::pick};

const MS: Duration = Duration::from_millis(1);

/// Passive health of one service with its own clock. Uids of instances start at 1.
struct Bench {
    health: PassiveHealth,
    service: Arc<str>,
    usable: usize,
    now: Instant,
}

impl Bench {
    fn new(usable: usize) -> Self {
        Self {
            health: PassiveHealth::default(),
            service: "users.default".into(),
            usable,
            now: Instant::now(),
        }
    }

    fn end(&mut self, uid: u64, end: End, waited: Duration, usual: Duration) -> Option<Ejection> {
        let call = Unanswered {
            end,
            started: self.now,
            usual,
        };
        self.now += waited;
        self.health
            .unanswered((&self.service, self.usable), uid, call, self.now, 0.5)
    }

    fn deadline(&mut self, uid: u64) -> Option<Ejection> {
        self.end(uid, End::Deadline, MS * 250, MS * 5)
    }

    fn eject(&mut self, uid: u64) -> Ejection {
        for _ in 1..UNANSWERED_RUN {
            assert_eq!(self.deadline(uid), None);
        }
        self.deadline(uid).expect("the run is full")
    }

    fn availability(&self, uid: u64) -> Availability {
        self.health.availability(uid, self.now)
    }

    fn probe(&mut self, uid: u64) {
        assert_eq!(self.availability(uid), Availability::Probe);
        self.health.chosen(uid, self.now, 0.5);
    }
}

#[test]
fn calls_in_a_row_without_an_answer_eject_and_one_answer_ends_the_run() {
    let mut bench = Bench::new(2);
    for _ in 0..3 {
        for _ in 1..UNANSWERED_RUN {
            assert_eq!(bench.deadline(1), None);
        }
        assert!(!bench.health.answered(1, bench.now), "it was not ejected");
    }
    assert_eq!(
        bench.eject(1),
        Ejection {
            time: FIRST_EJECTION,
            times: 1
        }
    );
    assert_eq!(bench.availability(1), Availability::Out);
    assert_eq!(bench.availability(2), Availability::In);
}

#[test]
fn a_probe_that_fails_doubles_the_time_and_one_answer_returns_the_instance() {
    let mut bench = Bench::new(2);
    let mut time = bench.eject(1).time;
    for expect in [2, 4, 8, 16, 30, 30] {
        assert_eq!(bench.availability(1), Availability::Out);
        bench.now += time;
        bench.probe(1);
        assert_eq!(
            bench.availability(1),
            Availability::Out,
            "one call at a time"
        );
        time = bench.deadline(1).expect("the probe failed").time;
        assert_eq!(time, Duration::from_secs(expect));
    }
    bench.now += time;
    bench.probe(1);
    assert!(bench.health.answered(1, bench.now));
    assert_eq!(bench.availability(1), Availability::In);
    assert!(!bench.health.has_ejected());
    // Ejected again soon: the count continues. Healthy for long: it starts anew.
    assert_eq!(bench.eject(1).times, 8);
    assert!(bench.health.answered(1, bench.now));
    bench.now += DECAY_EVERY * 20;
    assert_eq!(bench.eject(1).times, 1);
}

#[test]
fn a_probe_that_never_ends_holds_up_the_next_no_longer_than_one_that_fails() {
    let mut bench = Bench::new(2);
    bench.eject(1);
    bench.now += FIRST_EJECTION;
    bench.probe(1);
    bench.now += FIRST_EJECTION;
    bench.probe(1);
}

#[test]
fn calls_that_were_sent_before_the_ejection_do_not_lengthen_it() {
    let mut bench = Bench::new(2);
    let early = bench.now;
    bench.eject(1);
    for _ in 0..50 {
        let call = Unanswered {
            end: End::Deadline,
            started: early,
            usual: Duration::ZERO,
        };
        let now = bench.now;
        let more = bench
            .health
            .unanswered((&bench.service, 2), 1, call, now, 0.5);
        assert_eq!(more, None);
    }
    bench.now += FIRST_EJECTION;
    assert_eq!(bench.availability(1), Availability::Probe);
}

#[test]
fn a_caller_in_a_hurry_says_nothing_of_the_instance() {
    let mut bench = Bench::new(2);
    for _ in 0..50 {
        // Less time than it usually takes; cancelled at once; cancelled when a hedged call has answered.
        assert_eq!(bench.end(1, End::Deadline, MS * 10, MS * 200), None);
        assert_eq!(bench.end(1, End::Cancelled, MS * 10, MS), None);
        assert_eq!(bench.end(1, End::Cancelled, MS * 3000, MS * 2000), None);
    }
    assert_eq!(bench.availability(1), Availability::In);
    for _ in 1..UNANSWERED_RUN {
        assert_eq!(bench.end(1, End::Cancelled, MS * 1500, MS * 5), None);
    }
    assert!(bench.end(1, End::Cancelled, MS * 1500, MS * 5).is_some());
    // The same holds for a probe.
    bench.now += FIRST_EJECTION;
    bench.probe(1);
    assert_eq!(bench.end(1, End::Cancelled, MS * 10, MS * 5), None);
}

#[test]
fn a_connection_that_breaks_under_many_calls_is_one_event() {
    let mut bench = Bench::new(2);
    for _ in 0..50 {
        assert_eq!(bench.end(1, End::Lost, Duration::ZERO, MS), None);
    }
    for _ in 2..UNANSWERED_RUN {
        assert_eq!(bench.end(1, End::Lost, MS, MS), None);
    }
    assert!(bench.end(1, End::Lost, MS, MS).is_some());
}

#[test]
fn what_happened_long_ago_does_not_add_up() {
    let mut bench = Bench::new(2);
    for _ in 0..50 {
        bench.now += RUN_GAP * 2;
        assert_eq!(bench.deadline(1), None);
    }
}

#[test]
fn at_least_half_of_the_instances_stay_in() {
    for usable in 0..9 {
        let mut bench = Bench::new(usable);
        let uids = 1..=usable as u64;
        for uid in uids.clone() {
            for _ in 0..UNANSWERED_RUN * 2 {
                bench.deadline(uid);
            }
        }
        let now = bench.now;
        let out = uids.filter(|uid| bench.health.availability(*uid, now) != Availability::In);
        assert_eq!(out.count(), usable / 2, "of {usable}");
    }
}

#[test]
fn when_others_leave_the_first_ejected_return_and_what_is_gone_is_forgotten() {
    let mut bench = Bench::new(6);
    for uid in [1, 2, 3] {
        bench.eject(uid);
    }
    // Two of the healthy ones leave, then an ejected one, then the service.
    assert_eq!(bench.health.refit(|_| vec![1, 2, 3, 4]), [1]);
    assert_eq!(bench.availability(1), Availability::In);
    assert_eq!(bench.availability(3), Availability::Out);
    assert_eq!(bench.health.refit(|_| vec![1, 3, 4, 5]), [2]);
    assert_eq!(
        bench
            .health
            .ejected()
            .map(|(_, uid)| uid)
            .collect::<Vec<_>>(),
        [3]
    );
    assert_eq!(bench.health.refit(|_| vec![]), [3]);
    assert!(!bench.health.has_ejected() && bench.health.records.is_empty());
    // An instance leaves that is not ejected.
    bench.deadline(7);
    bench.health.retain(|uid| uid != 7);
    assert!(bench.health.records.is_empty());
}

#[test]
fn a_failure_that_comes_fast_does_not_count_as_fast() {
    let now = Instant::now();
    let latency = |end, waited, usual| {
        let call = Unanswered {
            end,
            started: now,
            usual,
        };
        call.latency(now + waited)
    };
    assert_eq!(latency(End::Reset, MS, MS), FAILURE_LATENCY);
    assert_eq!(latency(End::Lost, MS * 5000, MS), MS * 5000);
    assert_eq!(latency(End::Deadline, MS * 5, MS), DEADLINE_LATENCY);
    assert_eq!(latency(End::Deadline, MS * 5, MS * 50), MS * 5);
    assert_eq!(latency(End::Cancelled, MS * 5, MS), MS * 5);
}

proptest! {
    /// In any order of ends: the limit holds, an instance that has just answered is in, and an ejected one is probed
    /// within the longest wait.
    #[test]
    fn the_laws_hold(
        usable in 1usize..7,
        steps in proptest::collection::vec((1u64..7, 0u8..6, 0u64..3000), 1..400),
    ) {
        let mut bench = Bench::new(usable);
        for (uid, what, ms) in steps {
            let uid = 1 + uid % usable as u64;
            bench.now += MS * u32::try_from(ms).unwrap();
            let now = bench.now;
            match what {
                0 => {
                    bench.health.answered(uid, now);
                    prop_assert_eq!(bench.availability(uid), Availability::In);
                }
                1 => bench.health.chosen(uid, now, 0.7),
                2 => drop(bench.end(uid, End::Cancelled, MS * 1500, MS)),
                3 => drop(bench.end(uid, End::Lost, MS, MS)),
                _ => drop(bench.deadline(uid)),
            }
            let out: BTreeSet<u64> = bench.health.ejected().map(|(_, uid)| uid).collect();
            prop_assert!(out.len() <= max_ejected(usable));
            let later = bench.now + LONGEST_EJECTION * 2;
            for uid in 1..=usable as u64 {
                let availability = bench.health.availability(uid, bench.now);
                prop_assert_eq!(availability != Availability::In, out.contains(&uid));
                prop_assert!(bench.health.availability(uid, later) != Availability::Out);
            }
        }
    }
}

/// A service called by `callers` that each call again when their last call has ended, with peak EWMA, two choices and
/// passive health as in a worker. Instances answer after `latency`, or never.
struct Service {
    candidates: Candidates,
    health: PassiveHealth,
    name: Arc<str>,
    loads: BTreeMap<u64, (PeakEwma, u32)>,
    now: Instant,
    rng: SmallRng,
}

/// How the calls of a run ended.
#[derive(Debug, Default, PartialEq)]
struct Ends {
    answered: u32,
    failed: u32,
}

impl Service {
    fn new(instances: u64) -> Self {
        let endpoints = (1..=instances).map(|uid| Arc::new(Endpoint::of_test(uid)));
        let endpoints = endpoints.collect();
        Self {
            candidates: Candidates::new(&EndpointSet { endpoints }, "", "", &[]),
            health: PassiveHealth::default(),
            name: "users.default".into(),
            loads: BTreeMap::new(),
            now: Instant::now(),
            rng: SmallRng::seed_from_u64(11),
        }
    }

    fn choose(&mut self) -> u64 {
        let (loads, health, now, rng) = (&self.loads, &self.health, self.now, &mut self.rng);
        let load = |e: &Endpoint| {
            let (ewma, pending) = loads.get(&e.uid).copied().unwrap_or_default();
            ewma.cost(pending, e.weight, now)
        };
        let cost = |e: &Endpoint| health.availability(e.uid, now).cost(load(e));
        let any = |e: &Endpoint| Some(load(e));
        let mut below = |n| rng.random_range(0..n);
        let found = pick(&self.candidates, now, cost, &mut below);
        let uid = found
            .or_else(|| pick(&self.candidates, now, any, &mut below))
            .unwrap()
            .uid;
        self.health.chosen(uid, now, 0.5);
        uid
    }

    /// Runs for `span`; each call has this deadline.
    fn run(
        &mut self,
        span: Duration,
        callers: usize,
        deadline: Duration,
        latency: impl Fn(u64) -> Option<Duration>,
    ) -> Ends {
        let usable = self.candidates.groups()[0].members.len();
        let mut ends = Ends::default();
        // When a call ends, its instance, when it began, whether it is answered.
        let mut under_way: Vec<(Instant, u64, Instant, bool)> = Vec::new();
        let end = self.now + span;
        while self.now < end {
            while under_way.len() < callers {
                let uid = self.choose();
                self.loads.entry(uid).or_default().1 += 1;
                let took = latency(uid).filter(|took| *took < deadline);
                let at = self.now + took.unwrap_or(deadline);
                under_way.push((at, uid, self.now, took.is_some()));
            }
            under_way.sort_unstable();
            let (at, uid, began, answered) = under_way.remove(0);
            self.now = at;
            let (ewma, pending) = self.loads.get_mut(&uid).unwrap();
            *pending -= 1;
            if answered {
                ewma.observe(at - began, at);
                self.health.answered(uid, at);
                ends.answered += 1;
                continue;
            }
            let call = Unanswered {
                end: End::Deadline,
                started: began,
                usual: ewma.estimate(at),
            };
            ewma.at_least(call.latency(at), at);
            let of = (&self.name, usable);
            self.health.unanswered(of, uid, call, at, 0.5);
            ends.failed += 1;
        }
        ends
    }
}

#[test]
fn beside_a_hung_instance_callers_lose_their_first_calls_and_then_a_probe_now_and_then() {
    let hung = |uid| (uid != 1).then_some(MS * 5);
    for (callers, first) in [(1, 8), (8, 16), (64, 64)] {
        let mut service = Service::new(2);
        let begin = service.run(MS * 10_000, callers, MS * 250, hung);
        assert!(begin.failed <= first, "{callers} callers: {begin:?}");
        let then = service.run(MS * 60_000, callers, MS * 250, hung);
        assert!(then.failed <= 6, "{callers} callers: {then:?}");
        // It answers again: within the longest wait it gets its share of the calls.
        service.run(LONGEST_EJECTION * 2, callers, MS * 250, |_| Some(MS * 5));
        assert!(!service.health.has_ejected());
        let before = service.loads[&1].0.estimate(service.now);
        assert!(before < MS * 20, "{before:?}");
    }
}

#[test]
fn deadlines_that_the_service_cannot_keep_take_out_no_more_than_half_and_for_no_longer_than_they_last()
 {
    let slow = |_| Some(MS * 200);
    let mut service = Service::new(4);
    service.run(MS * 5000, 8, MS * 50, slow);
    let out = service.health.ejected().count();
    assert!(out <= 2, "{out}");
    let then = service.run(LONGEST_EJECTION * 3, 8, MS * 2000, slow);
    assert_eq!((then.failed, service.health.has_ejected()), (0, false));
    // There were also callers with enough time: the usual latency is known, and nobody is ejected.
    let short = service.run(MS * 5000, 8, MS * 50, slow);
    assert_eq!(short.answered, 0);
    assert!(!service.health.has_ejected());
}

#[test]
fn with_most_instances_hung_the_living_one_is_found() {
    let hung = |uid| (uid == 3).then_some(MS * 5);
    let mut service = Service::new(3);
    service.run(MS * 10_000, 8, MS * 250, hung);
    let then = service.run(MS * 60_000, 8, MS * 250, hung);
    assert!(then.failed * 20 < then.answered, "{then:?}");
}
