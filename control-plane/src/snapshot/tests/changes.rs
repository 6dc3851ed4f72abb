//! The cost of a change, and that building the changes gives the same as building everything.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::registry::{
    NodeLease, NodeWrite,
    fixture::{Fixture, identity, instance, within},
};

/// Instances of some services are added, changed and removed in a pseudorandom order. After each step, what was built
/// from the changes alone equals what is built from the whole view (the fixture compares versions), and reads the same.
#[test]
fn what_is_made_of_changes_is_what_is_made_of_everything() {
    let mut mesh = Mesh::new();
    let mut state = 7_u64;
    let mut roll = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for step in 0..300 {
        for _ in 0..=roll(8) {
            let node = ["a", "b", "far"][usize::try_from(roll(3)).unwrap()];
            let path = format!("{node}/s{}/i{}", roll(2), roll(160));
            match roll(8) {
                0 | 1 => mesh.remove(&path),
                2 => mesh.node(node).zone = format!("z{}", roll(3)),
                3 => mesh.node(node).suspect = roll(2) == 0,
                _ => {
                    // Few addresses, so that several instances share one.
                    let address = [
                        format!("10.0.0.{}:80", roll(90)),
                        format!("127.0.0.1:{}", 1 + roll(20)),
                        "[fe80::1]:80".to_owned(),
                    ];
                    let address = &address[usize::try_from(roll(12) / 5).unwrap()];
                    let local = mesh.put(&path, address);
                    local.health = i32::try_from(1 + roll(3)).unwrap();
                    local.instance.as_mut().unwrap().weight = u32::try_from(1 + roll(2)).unwrap();
                    let methods: &[&str] =
                        [&["Get"][..], &["Get", "Put"], &[]][usize::try_from(roll(3)).unwrap()];
                    local.protos = vec![proto(&format!("p.P{}", roll(2)), methods)];
                    local.schema_sha256 = ["", &"a".repeat(64), &"b".repeat(64)]
                        [usize::try_from(roll(3)).unwrap()]
                    .to_owned();
                }
            }
        }
        let all = mesh.snapshot();
        for service in ["s0.default", "s1.default"] {
            if all.get(Kind::Cluster, Audience::Proxy, service).is_none() {
                continue;
            }
            for audience in Audience::ALL {
                assert_eq!(
                    endpoints(mesh.by_instance(), audience, service),
                    endpoints(&all, audience, service),
                    "step {step}, {audience:?}"
                );
            }
        }
    }
}

/// Issue 10, D1: a huge service that changes all the time is built a few times a second, whatever the number of its
/// changes, while the changes of another service are published and a new node connects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_service_that_flaps_is_built_a_few_times_a_second() {
    const HUGE: usize = 4_000;
    const CHANGES: u32 = 200;
    let rest = Duration::from_micros(25) * u32::try_from(HUGE).unwrap();
    let fixture = Fixture::new().await;
    let publisher = Publisher::start(fixture.registry.clone(), CancellationToken::new());
    let mut big = NodeLease::claim(&fixture.registry, &identity("a", "p"))
        .await
        .unwrap();
    let ids: Vec<_> = (0..HUGE).map(|number| format!("huge/i{number}")).collect();
    let all = ids.iter().map(|name| instance("a", name)).collect();
    let revision = big.replace_all(all).await.unwrap();
    let mut snapshots = publisher.subscribe();
    within(snapshots.wait_for(|snapshot| snapshot.revision >= revision.0))
        .await
        .unwrap();

    let begun = Instant::now();
    let watching = tokio::spawn({
        let mut snapshots = publisher.subscribe();
        async move {
            let mut last = snapshots.borrow_and_update().generation;
            let mut builds = 0_u32;
            loop {
                let now = {
                    let changed = snapshots.changed().await;
                    changed.unwrap();
                    Arc::clone(&snapshots.borrow_and_update())
                };
                let steps = now.steps_since(last).unwrap();
                builds += u32::try_from(
                    steps
                        .filter(|step| step.of(Kind::Endpoint).contains("huge.default"))
                        .count(),
                )
                .unwrap();
                last = now.generation;
                let small = now.get(Kind::Endpoint, Audience::Proxy, "small.default");
                let done = now.get(Kind::Endpoint, Audience::Proxy, "done.default");
                if small.is_some() && done.is_some() {
                    return builds;
                }
            }
        }
    });
    for round in 0..CHANGES {
        let (key, mut local) = instance("a", &ids[usize::try_from(round).unwrap() % HUGE]);
        local.instance.as_mut().unwrap().weight = 2 + round;
        big.change(vec![NodeWrite::Put(key, Box::new(local))])
            .await
            .unwrap();
        if round == CHANGES / 2 {
            // A node that connects in the middle, and its service.
            let mut other = NodeLease::claim(&fixture.registry, &identity("b", "q"))
                .await
                .unwrap();
            let small = vec![instance("b", "small/1")];
            other.replace_all(small).await.unwrap();
        }
    }
    let (key, local) = instance("a", "done/1");
    big.change(vec![NodeWrite::Put(key, Box::new(local))])
        .await
        .unwrap();
    let builds = within(watching).await.unwrap();
    let most = u32::try_from(begun.elapsed().as_nanos() / rest.as_nanos()).unwrap() + 2;
    assert!(
        (1..=most).contains(&builds),
        "{builds} builds for {CHANGES} changes; at most {most}"
    );
}
