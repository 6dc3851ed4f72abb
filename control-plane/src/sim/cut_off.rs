//! A scenario that the seeds do not reach: the only replica is cut off from its store for less than its own lease, and
//! a node's older lease ends meanwhile. No other node lapses, so the rules about many lapsed nodes do not apply.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    in_virtual_time, node,
    random::Random,
    replica,
    simulation::{Profile, Simulation, Who, lock},
    store,
};
use crate::{
    names::keys,
    store::{KeyValue, Revision},
};

/// With a TTL of 10 s: more than remains for a node that is about to renew (7 s), less than for a replica that has just
/// renewed (10 s). Long enough that a request fails meanwhile (5 s).
const CUT_OFF_FOR: Duration = Duration::from_millis(8500);
/// By this time a leader that does not wait has expired the node.
const AT_ONCE: Duration = Duration::from_millis(200);
/// How much later than the store the node is reachable again; the leader waits for a TTL.
const LATER: Duration = Duration::from_secs(1);

struct Seen {
    /// The store ended the node's lease before the replica was connected again.
    lapsed: bool,
    /// The same replica is still the leader.
    kept_duty: bool,
    /// Instances and the revisions of their first write.
    before: Vec<(String, Revision)>,
    after: Vec<(String, Revision)>,
    broken: Option<String>,
    trace: String,
}

async fn cut_off_at(moment: Duration) -> Seen {
    let seed = 1;
    let profile = Profile {
        replicas: 1,
        nodes: 1,
        services: 1,
        clients: 0,
        gentle: false,
        lossy: 0,
        history: 10_000,
        faults: Duration::ZERO,
    };
    let simulation = Simulation::new(profile, seed, false);
    tokio::spawn(store::run(simulation.clone()));
    replica::start(&simulation, 0);
    let name = ("s0".to_owned(), "i0".to_owned());
    node::start(&simulation, Random::new(seed), 0, &[name]);
    let (here, there) = (Who::Replica(0), Who::Node(0, 1));

    sleep(moment).await;
    let before = instances(&simulation);
    let duty = written(&simulation, &keys::duty("sweeper"));
    simulation.log(format_args!("{here} is cut off from all"));
    simulation.change_net(|net| {
        net.paused.insert(here);
    });
    sleep(CUT_OFF_FOR).await;
    let lapsed = written(&simulation, &keys::alive("n0")).is_none();
    simulation.log(format_args!("{here} is joined to the store again"));
    simulation.change_net(|net| {
        net.blocked.extend([(here, there), (there, here)]);
        net.paused.remove(&here);
    });
    sleep(AT_ONCE).await;
    let kept_duty = duty.is_some() && duty == written(&simulation, &keys::duty("sweeper"));
    sleep(LATER - AT_ONCE).await;
    simulation.log(format_args!("{here} is joined to {there} again"));
    simulation.change_net(|net| net.blocked.clear());
    sleep(Duration::from_secs(20)).await;
    Seen {
        lapsed,
        kept_duty,
        before,
        after: instances(&simulation),
        broken: simulation.verdict(),
        trace: simulation.trace(),
    }
}

fn instances(simulation: &Simulation) -> Vec<(String, Revision)> {
    let found = lock(&simulation.store)
        .machine
        .range(keys::INSTANCES, None, true);
    let items = found.expect("the present is there").items;
    let by_birth = |item: KeyValue| (item.key.to_string(), item.create_revision);
    items.into_iter().map(by_birth).collect()
}

fn written(simulation: &Simulation, key: &str) -> Option<Revision> {
    let found = lock(&simulation.store).machine.get(key);
    found.map(|item| item.mod_revision)
}

#[test]
fn a_node_that_lapsed_while_its_replica_was_cut_off_has_a_ttl_to_come_back() {
    let mut came_to_it = 0;
    // Node and replica renew at different intervals: some of these moments are late in one interval and early in the
    // other.
    for step in 0..24 {
        let moment = Duration::from_millis(20_100) + Duration::from_millis(250) * step;
        let seen = in_virtual_time(cut_off_at(moment));
        let trace = &seen.trace;
        assert_eq!(seen.broken, None, "cut off at {moment:?}:\n{trace}");
        assert_eq!(seen.before.len(), 1, "cut off at {moment:?}:\n{trace}");
        // An instance that left and was registered again would have another revision of its first write.
        assert_eq!(seen.after, seen.before, "cut off at {moment:?}:\n{trace}");
        came_to_it += usize::from(seen.lapsed && seen.kept_duty);
    }
    assert!(came_to_it >= 2, "it came to it {came_to_it} times");
}
