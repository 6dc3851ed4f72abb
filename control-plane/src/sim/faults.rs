//! The faults of a run and its normal changes, in random order. Each fault is undone after a while, and at the end of
//! the run everything works again.

use std::{sync::atomic::Ordering, time::Duration};

use heddle_proto::registry::v1::Health;
use tokio::time::sleep;

use super::{
    client::{self, ClientResources, Flavor},
    invariants, node,
    random::Random,
    replica,
    simulation::{Profile, Simulation, Who, lock},
    store,
};

pub(super) fn profile(random: &mut Random) -> Profile {
    let gentle = random.chance(350);
    let small_history = random.chance(300);
    Profile {
        replicas: random.count(if gentle { 2..=3 } else { 1..=3 }),
        nodes: random.count(2..=6),
        services: random.count(2..=3),
        clients: random.count(2..=5),
        gentle,
        lossy: if gentle || random.chance(400) {
            0
        } else {
            random.number(2..=40)
        },
        history: if small_history {
            random.count(8..=40)
        } else {
            10_000
        },
        faults: Duration::from_secs(random.number(40..=90)),
    }
}

/// Starts everything.
pub(super) fn begin(simulation: &Simulation, random: &mut Random) {
    for n in 0..simulation.profile.replicas {
        replica::start(simulation, n);
    }
    for n in 0..simulation.profile.nodes {
        let names = some_names(simulation, random);
        node::start(simulation, random.fork(), n, &names);
    }
    for n in 0..simulation.profile.clients {
        let service = format!("s{}.default", n % simulation.profile.services);
        let flavor = Flavor::ALL[(n + random.count(0..=4)) % 5];
        client::start(
            simulation,
            random.fork(),
            n,
            ClientResources::new(flavor, &service),
        );
    }
}

fn some_names(simulation: &Simulation, random: &mut Random) -> Vec<node::Name> {
    let services = simulation.profile.services;
    let mut names = Vec::new();
    for service in 0..services {
        for id in 0..random.number(0..=2) {
            names.push((format!("s{service}"), format!("i{id}")));
        }
    }
    names
}

/// Causes events until the time of faults is over.
pub(super) async fn run(simulation: &Simulation, random: &mut Random) {
    while simulation.now() < simulation.profile.faults {
        sleep(random.millis(100..=4000)).await;
        if simulation.profile.gentle {
            gentle(simulation, random).await;
        } else {
            rough(simulation, random);
        }
    }
}

/// One event at a time; none of them may make a living instance disappear.
async fn gentle(simulation: &Simulation, random: &mut Random) {
    match random.number(0..=9) {
        0..=3 => of_itself(simulation, random),
        4 => restart_client(simulation, random),
        5 | 6 => {
            let Some(n) = up(simulation, random) else {
                return;
            };
            if random.chance(500) {
                replica::kill(simulation, n);
            } else {
                replica::stop(simulation, random, n).await;
            }
            sleep(random.millis(0..=4000)).await;
            replica::start(simulation, n);
            settled(simulation).await;
        }
        7 => {
            // One replica cut off from all others, as if its host's cable were pulled.
            let Some(n) = up(simulation, random) else {
                return;
            };
            let me = Who::Replica(n);
            simulation.log(format_args!("replica r{n} is cut off"));
            simulation.change_net(|net| {
                net.paused.insert(me);
            });
            sleep(random.millis(1000..=20_000)).await;
            simulation.log(format_args!("replica r{n} is joined again"));
            simulation.change_net(|net| {
                net.paused.remove(&me);
            });
            settled(simulation).await;
        }
        _ => break_connection(simulation, random).await,
    }
}

/// Waits until all replicas serve and every node and client has had time to find one.
async fn settled(simulation: &Simulation) {
    while lock(&simulation.replicas).len() < simulation.profile.replicas {
        sleep(Duration::from_millis(200)).await;
    }
    sleep(Duration::from_secs(12)).await;
}

fn rough(simulation: &Simulation, random: &mut Random) {
    match random.number(0..=19) {
        0..=3 => of_itself(simulation, random),
        4 => restart_client(simulation, random),
        5 | 6 => kill_node(simulation, random),
        7 => succeed(simulation, random),
        8 => pause(simulation, random),
        9 | 10 => restart_replica(simulation, random),
        11 | 12 => cut(simulation, random),
        13 => cut_from_store(simulation, random),
        14 => lose_store(simulation, random),
        15 => slow(simulation, random),
        16 => many_cut(simulation, random),
        _ => {
            let (simulation, mut random) = (simulation.clone(), random.fork());
            tokio::spawn(async move { break_connection(&simulation, &mut random).await });
        }
    }
}

/// Registers, removes or changes an instance.
fn of_itself(simulation: &Simulation, random: &mut Random) {
    let Some(who) = running(simulation, random) else {
        return;
    };
    let service = random.index(simulation.profile.services);
    let id = random.number(0..=2);
    let name = (format!("s{service}"), format!("i{id}"));
    let known = lock(&simulation.nodes)
        .get(&who)
        .is_some_and(|book| book.instances.contains_key(&name));
    if !known {
        return node::register(simulation, who, &name);
    }
    match random.number(0..=2) {
        0 => {
            // A draining instance is removed from stock clients on purpose.
            let mut healths = vec![Health::Healthy, Health::Unhealthy];
            if !simulation.profile.gentle {
                healths.push(Health::Draining);
            }
            let health = random.pick(&healths).unwrap_or(Health::Healthy);
            node::set_health(simulation, who, &name, health);
        }
        1 => node::deregister(simulation, who, &name),
        _ => {
            // A process restarts: the same name, another address.
            node::deregister(simulation, who, &name);
            node::register(simulation, who, &name);
        }
    }
}

fn restart_client(simulation: &Simulation, random: &mut Random) {
    let n = random.index(simulation.profile.clients);
    let Some(resources) = client::kill(simulation, n) else {
        return;
    };
    let keeps = random.chance(500);
    let resources = if keeps {
        resources
    } else {
        ClientResources::new(resources.flavor, &resources.service)
    };
    after(simulation, random, 0..=5000, move |simulation, random| {
        client::start(simulation, random, n, resources);
    });
}

fn kill_node(simulation: &Simulation, random: &mut Random) {
    let Some(who @ Who::Node(n, _)) = running(simulation, random) else {
        return;
    };
    if invariants::is_contested(simulation, n) {
        return;
    }
    node::kill(simulation, who);
    if random.chance(800) {
        let names = some_names(simulation, random);
        after(simulation, random, 0..=30_000, move |simulation, random| {
            node::start_again(simulation, random, n, &names);
        });
    }
}

/// A node's process is paused and another takes over; when the old one resumes, it has to notice that it was replaced.
fn succeed(simulation: &Simulation, random: &mut Random) {
    let Some(old @ Who::Node(n, _)) = running(simulation, random) else {
        return;
    };
    if invariants::is_contested(simulation, n) {
        return;
    }
    let names = some_names(simulation, random);
    if random.chance(700) {
        simulation.log(format_args!("{old} sleeps"));
        simulation.change_net(|net| {
            net.paused.insert(old);
        });
    }
    let (simulation, mut random) = (simulation.clone(), random.fork());
    tokio::spawn(async move {
        sleep(random.millis(0..=15_000)).await;
        if !(lock(&simulation.nodes).contains_key(&old) && node::is_rightful(&simulation, old)) {
            return;
        }
        node::start(&simulation, random.fork(), n, &names);
        // The old process sends changes before it knows that it was replaced.
        let name = ("s0".to_owned(), "i0".to_owned());
        for _ in 0..4 {
            sleep(random.millis(0..=60)).await;
            node::register(&simulation, old, &name);
            sleep(random.millis(0..=60)).await;
            node::deregister(&simulation, old, &name);
        }
        sleep(random.millis(0..=12_000)).await;
        simulation.log(format_args!("{old} is awake"));
        simulation.change_net(|net| {
            net.paused.remove(&old);
        });
        sleep(random.millis(1000..=30_000)).await;
        node::kill(&simulation, old);
    });
}

fn pause(simulation: &Simulation, random: &mut Random) {
    let Some(who) = running(simulation, random) else {
        return;
    };
    simulation.log(format_args!("{who} sleeps"));
    simulation.change_net(|net| {
        net.paused.insert(who);
    });
    after(simulation, random, 500..=25_000, move |simulation, _| {
        simulation.log(format_args!("{who} is awake"));
        simulation.change_net(|net| {
            net.paused.remove(&who);
        });
    });
}

fn restart_replica(simulation: &Simulation, random: &mut Random) {
    let Some(n) = up(simulation, random) else {
        return;
    };
    let kill = random.chance(600);
    let (simulation, mut random) = (simulation.clone(), random.fork());
    tokio::spawn(async move {
        if kill {
            replica::kill(&simulation, n);
        } else {
            replica::stop(&simulation, &mut random, n).await;
        }
        sleep(random.millis(0..=12_000)).await;
        replica::start(&simulation, n);
    });
}

/// A node or a client cannot reach a replica, in one direction or both.
fn cut(simulation: &Simulation, random: &mut Random) {
    let (replica, other) = link(simulation, random);
    cut_apart(simulation, random, replica, other, 500..=30_000);
}

fn cut_from_store(simulation: &Simulation, random: &mut Random) {
    let n = random.index(simulation.profile.replicas);
    // Up to more than twice as long as a client's state may be older than the store's.
    cut_apart(
        simulation,
        random,
        Who::Replica(n),
        Who::Store,
        500..=75_000,
    );
}

/// Cuts most nodes off from everything at once, so that they become suspects.
fn many_cut(simulation: &Simulation, random: &mut Random) {
    let nodes: Vec<Who> = lock(&simulation.nodes).keys().copied().collect();
    for node in nodes.into_iter().take(4) {
        for n in 0..simulation.profile.replicas {
            cut_apart(simulation, random, Who::Replica(n), node, 12_000..=30_000);
        }
    }
}

fn cut_apart(
    simulation: &Simulation,
    random: &mut Random,
    a: Who,
    b: Who,
    lasts: std::ops::RangeInclusive<u64>,
) {
    let ways = random.number(0..=3);
    let pairs: &[(Who, Who)] = match ways {
        0 => &[(a, b)],
        1 => &[(b, a)],
        _ => &[(a, b), (b, a)],
    };
    let pairs = pairs.to_vec();
    simulation.log(format_args!("cut: {pairs:?}"));
    simulation.change_net(|net| net.blocked.extend(pairs.iter().copied()));
    after(simulation, random, lasts, move |simulation, _| {
        simulation.log(format_args!("joined: {pairs:?}"));
        simulation.change_net(|net| {
            for pair in &pairs {
                net.blocked.remove(pair);
            }
        });
    });
}

/// The store has no leader, or no quorum, for a while.
fn lose_store(simulation: &Simulation, random: &mut Random) {
    if !lock(&simulation.store).up {
        return;
    }
    simulation.log(format_args!("the store is down"));
    store::set_up(simulation, false);
    let long = random.chance(250);
    let lasts = if long { 5000..=40_000 } else { 300..=4000 };
    after(simulation, random, lasts, |simulation, _| {
        simulation.log(format_args!("the store is up"));
        store::set_up(simulation, true);
    });
}

fn slow(simulation: &Simulation, random: &mut Random) {
    let n = random.index(simulation.profile.replicas);
    let who = if random.chance(500) {
        Who::Store
    } else {
        Who::Replica(n)
    };
    simulation.log(format_args!("{who} is slow"));
    simulation.change_net(|net| {
        net.slow.insert(who);
    });
    after(simulation, random, 1000..=15_000, move |simulation, _| {
        simulation.log(format_args!("{who} is as quick as before"));
        simulation.change_net(|net| {
            net.slow.remove(&who);
        });
    });
}

/// A stall between one pair that is over before either end notices.
async fn break_connection(simulation: &Simulation, random: &mut Random) {
    let (replica, other) = link(simulation, random);
    simulation.log(format_args!("a stall between {replica} and {other}"));
    simulation.change_net(|net| net.blocked.extend([(replica, other), (other, replica)]));
    sleep(random.millis(200..=2500)).await;
    simulation.change_net(|net| {
        net.blocked.remove(&(replica, other));
        net.blocked.remove(&(other, replica));
    });
}

/// Repairs everything and restarts what is down.
pub(super) async fn end(simulation: &Simulation) {
    // Faults that have begun end by themselves within 45 s.
    sleep(Duration::from_secs(46)).await;
    simulation.log(format_args!("the faults are over"));
    simulation.change_net(|net| {
        net.blocked.clear();
        net.paused.clear();
        net.slow.clear();
    });
    if !lock(&simulation.store).up {
        store::set_up(simulation, true);
    }
    simulation.calm.store(true, Ordering::Relaxed);
}

fn running(simulation: &Simulation, random: &mut Random) -> Option<Who> {
    let rightful = lock(&simulation.rightful).clone();
    let nodes = lock(&simulation.nodes);
    let all = rightful
        .into_iter()
        .map(|(node, process)| Who::Node(node, process));
    let all: Vec<Who> = all.filter(|who| nodes.contains_key(who)).collect();
    drop(nodes);
    let all: Vec<Who> = all
        .into_iter()
        .filter(|who| simulation.net(|net| !net.paused.contains(who)))
        .collect();
    random.pick(&all)
}

/// A replica, and a node or a client that may be connected to it.
fn link(simulation: &Simulation, random: &mut Random) -> (Who, Who) {
    let replica = Who::Replica(random.index(simulation.profile.replicas));
    let client = Who::Client(random.index(simulation.profile.clients));
    match running(simulation, random) {
        Some(node) if random.chance(600) => (replica, node),
        _ => (replica, client),
    }
}

fn up(simulation: &Simulation, random: &mut Random) -> Option<usize> {
    let all: Vec<usize> = lock(&simulation.replicas).keys().copied().collect();
    random.pick(&all)
}

fn after(
    simulation: &Simulation,
    random: &mut Random,
    millis: std::ops::RangeInclusive<u64>,
    deed: impl FnOnce(&Simulation, Random) + Send + 'static,
) {
    let simulation = simulation.clone();
    let (wait, own) = (random.millis(millis), random.fork());
    tokio::spawn(async move {
        sleep(wait).await;
        deed(&simulation, own);
    });
}
