use std::{process::Command, time::Duration};

use futures_util::future::join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::registry::{
    core::{Registry, events::MAX_EVENTS},
    fixture::{Fixture, identity, instance, names},
    lease::NodeLease,
    options::{ClaimOptions, ExpiryOptions, GcOptions, IdleOptions, RegistryOptions},
};

/// Nodes in parallel: they share commits, otherwise each cycle would wait for the disk alone.
const NODES: usize = 64;
/// The environment variable with the number of cycles, for the child process.
const CYCLES: &str = "HEDDLE_TEST_CYCLES";

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// One life of a node: it joins, changes, and leaves, or is killed at any moment.
async fn cycle(registry: &Registry, node: usize, n: usize, rng: &mut StdRng) {
    let name = format!("n{node}");
    let killed_after = rng.random_range(0..4);
    let who = identity(&name, &format!("p{n}"));
    let Ok(mut lease) = NodeLease::claim(registry, &who).await else {
        panic!("nobody else claims {name}");
    };
    if killed_after == 0 {
        return;
    }
    let set = (0..3).map(|id| instance(&name, &format!("users/u{id}")));
    lease.replace_all(set.collect()).await.unwrap();
    if killed_after == 1 {
        return;
    }
    lease
        .replace_all(vec![instance(&name, "users/u1")])
        .await
        .unwrap();
    if killed_after == 2 {
        // In the middle of a write: the future is dropped at some point.
        let leave = lease.leave();
        let moment = Duration::from_micros(rng.random_range(0..2000));
        let _ = tokio::time::timeout(moment, leave).await;
        return;
    }
    lease.leave().await.unwrap();
}

/// Memory is measured in a separate process: other tests run in this one.
fn in_a_process_of_its_own(cycles: usize) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("registry::tests::leaks::child_whose_nodes_come_and_go")
        .env(CYCLES, cycles.to_string())
        .output()
        .unwrap();
    let kind_and_cause = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{kind_and_cause}");
    assert!(
        kind_and_cause.contains("cycles: "),
        "it did nothing: {kind_and_cause}"
    );
    eprint!("{kind_and_cause}");
}

#[test]
fn cycles_with_random_kills_leak_nothing() {
    in_a_process_of_its_own(2000);
}

#[test]
#[ignore = "long: 10,000 cycles"]
fn ten_thousand_cycles_with_random_kills_leak_nothing() {
    in_a_process_of_its_own(10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn child_whose_nodes_come_and_go() {
    let Some(cycles) = std::env::var(CYCLES).ok().and_then(|n| n.parse().ok()) else {
        return;
    };
    come_and_go(cycles).await;
}

async fn come_and_go(cycles: usize) {
    let options = RegistryOptions {
        lease_ttl: Duration::from_secs(2),
        renew_interval: Duration::from_millis(600),
        // Nodes that die at the same time are intended here.
        expiry: ExpiryOptions {
            mass_nodes: usize::MAX,
            ..ExpiryOptions::default()
        },
        idle: IdleOptions {
            forget_after: Duration::from_millis(500),
            ..IdleOptions::default()
        },
        claims: ClaimOptions {
            release_after: Duration::from_millis(500),
            note_every: Duration::from_millis(200),
            ..ClaimOptions::default()
        },
        gc: GcOptions {
            interval: Duration::from_millis(200),
            nodes_after: Duration::from_millis(500),
            ..GcOptions::default()
        },
        ..RegistryOptions::default()
    };
    // The history that the store keeps for slow watchers is bounded too, but its default bound is more than this test
    // writes.
    let fixture = Fixture::with_history(1000, options).await;
    let registry = &fixture.registry;
    let seed = 5;
    let run = |from: usize, to: usize| {
        let nodes = (0..NODES).map(move |node| {
            let registry = registry.clone();
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed + (node * cycles + from) as u64);
                for n in (from + node..to).step_by(NODES) {
                    cycle(&registry, node, n, &mut rng).await;
                }
            })
        });
        join_all(nodes)
    };
    let store = registry.store();
    // The first tenth fills what is kept: pools, tables, the history of the store.
    for done in run(0, cycles / 10).await {
        done.unwrap();
    }
    let (resident, before) = (resident_bytes(), store.counters());
    for done in run(cycles / 10, cycles).await {
        done.unwrap();
    }
    let grown = resident_bytes().saturating_sub(resident);
    let changes = store.counters().changes - before.changes;
    assert!(changes > cycles as u64, "{changes}");
    fixture
        .until(|view| names(view).is_empty() && view.nodes().next().is_none())
        .await;
    fixture.until(|view| view.services().next().is_none()).await;
    assert_eq!(fixture.keys_of_nodes().await, ["epoch-floor"]);
    let after = store.counters();
    // The replica's own lease and those of the events of the last hour: one per ten minutes.
    assert!(after.leases <= 3, "{after:?}");
    assert!(after.keys <= MAX_EVENTS as u64 + 80, "{after:?}");
    assert_eq!(registry.beats(), 0, "nobody's beats are remembered");
    assert!(grown < 16 << 20, "memory has grown by {} MiB", grown >> 20);
    eprintln!(
        "{cycles} cycles: {changes} changes, memory +{} KiB, {after:?}",
        grown >> 10
    );
}
