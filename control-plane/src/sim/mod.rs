//! The whole control plane in one process with virtual time: real registries, node sessions, publishers and xDS
//! streams of several replicas over a simulated store and network, with simulated nodes and clients. The same seed
//! gives the same run, with its trace and the first violated invariant. docs/simulation.md explains how to read one.

mod client;
mod cut_off;
mod random;
mod invariants;
mod link;
mod node;
mod reconnect;
mod replica;
mod store;
mod faults;
mod simulation;

use std::time::Duration;

use tokio::time::sleep;

use random::Random;
use simulation::Simulation;

/// The environment variable with a seed to replay, with its trace on standard output.
const SEED: &str = "HEDDLE_SIM_SEED";
/// The environment variable with the number of seeds of the long test.
const SEEDS: &str = "HEDDLE_SIM_SEEDS";
/// Everything must have converged within this time after the faults.
const SETTLE: Duration = Duration::from_secs(100);

/// A long run stops after this many failures.
const MOST_BROKEN: usize = 20;

struct Ended {
    finger_print: u64,
    broken: Option<String>,
    trace: String,
}

/// Runs a scenario with a paused clock, which advances only when no task can run.
fn in_virtual_time<T>(scenario: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        replica::begin_wall();
        scenario.await
    })
}

fn run(seed: u64, print: bool) -> Ended {
    in_virtual_time(async {
        let mut random = Random::new(seed);
        let profile = faults::profile(&mut random);
        let simulation = Simulation::new(profile, seed, print);
        simulation.log(format_args!("seed {seed}: {:?}", simulation.profile));
        tokio::spawn(store::run(simulation.clone()));
        faults::begin(&simulation, &mut random);
        let looks = simulation.clone();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(500)).await;
                invariants::check(&looks);
            }
        });
        let scenario = async {
            faults::run(&simulation, &mut random).await;
            faults::end(&simulation).await;
            sleep(SETTLE).await;
            invariants::converged(&simulation);
        };
        tokio::select! {
            biased;
            () = simulation.over.cancelled() => {}
            () = scenario => {}
        }
        Ended {
            finger_print: simulation.finger_print(),
            broken: simulation.verdict(),
            trace: simulation.trace(),
        }
    })
}

/// Runs seeds one after another. Those that violate an invariant fail the test; the trace of the first one is printed.
fn check(seeds: impl Iterator<Item = u64>) {
    let broken = seeds.filter_map(|seed| {
        let ended = run(seed, false);
        Some((seed, ended.broken?, ended.trace))
    });
    let broken: Vec<_> = broken.take(MOST_BROKEN).collect();
    if let Some((seed, _, trace)) = broken.first() {
        let all = broken
            .iter()
            .fold(String::new(), |all, (seed, invariant, _)| {
                all + &format!("seed {seed} violates an invariant: {invariant}\n")
            });
        panic!(
            "{trace}\n{all}replay: {SEED}={seed} cargo test -p heddle-control --lib -- sim::replay --nocapture"
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Does nothing unless a seed is given.
#[test]
fn replay() {
    let Some(seed) = number(SEED) else { return };
    heddle_options::init_logging("info");
    let ended = run(seed, true);
    assert_eq!(ended.broken, None, "seed {seed}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..4 {
        assert_eq!(
            run(seed, false).finger_print,
            run(seed, false).finger_print,
            "seed {seed}"
        );
    }
}

#[test]
fn no_seed_violates_an_invariant() {
    check(0..150);
}

#[test]
fn no_other_seed_violates_an_invariant() {
    check(150..300);
}

/// Thousands of seeds: `./test --long`, or `HEDDLE_SIM_SEEDS=100000`.
#[test]
#[ignore = "takes minutes"]
fn none_of_thousands_of_seeds_violates_an_invariant() {
    check(1000..1000 + number(SEEDS).unwrap_or(4000));
}
