//! What goes wrong in a run, and what happens of itself: one deed after another, as the dice want, each undone after a
//! while. A profile comes in; in the end everything is whole again.

use std::{sync::atomic::Ordering, time::Duration};

use heddle_proto::registry::v1::Health;
use tokio::time::sleep;

use super::{
    client::{self, Flavor, Held},
    dice::Dice,
    laws, node, replica, store,
    world::{Profile, Who, World, lock},
};

pub(super) fn profile(dice: &mut Dice) -> Profile {
    let gentle = dice.chance(350);
    let small_history = dice.chance(300);
    Profile {
        replicas: dice.count(if gentle { 2..=3 } else { 1..=3 }),
        nodes: dice.count(2..=6),
        services: dice.count(2..=3),
        clients: dice.count(2..=5),
        gentle,
        lossy: if gentle || dice.chance(400) {
            0
        } else {
            dice.number(2..=40)
        },
        history: if small_history {
            dice.count(8..=40)
        } else {
            10_000
        },
        turmoil: Duration::from_secs(dice.number(40..=90)),
    }
}

/// Starts everything.
pub(super) fn begin(world: &World, dice: &mut Dice) {
    for n in 0..world.profile.replicas {
        replica::start(world, n);
    }
    for n in 0..world.profile.nodes {
        let names = some_names(world, dice);
        node::start(world, dice.fork(), n, &names);
    }
    for n in 0..world.profile.clients {
        let service = format!("s{}.default", n % world.profile.services);
        let flavor = Flavor::ALL[(n + dice.count(0..=4)) % 5];
        client::start(world, dice.fork(), n, Held::new(flavor, &service));
    }
}

fn some_names(world: &World, dice: &mut Dice) -> Vec<node::Name> {
    let services = world.profile.services;
    let mut names = Vec::new();
    for service in 0..services {
        for id in 0..dice.number(0..=2) {
            names.push((format!("s{service}"), format!("i{id}")));
        }
    }
    names
}

/// Deeds until the turmoil ends.
pub(super) async fn run(world: &World, dice: &mut Dice) {
    while world.now() < world.profile.turmoil {
        sleep(dice.millis(100..=4000)).await;
        if world.profile.gentle {
            gentle(world, dice).await;
        } else {
            rough(world, dice);
        }
    }
}

/// One deed at a time, none of which is reason to lose a living instance.
async fn gentle(world: &World, dice: &mut Dice) {
    match dice.number(0..=9) {
        0..=3 => of_itself(world, dice),
        4 => restart_client(world, dice),
        5 | 6 => {
            let Some(n) = up(world, dice) else { return };
            if dice.chance(500) {
                replica::kill(world, n);
            } else {
                replica::stop(world, dice, n).await;
            }
            sleep(dice.millis(0..=4000)).await;
            replica::start(world, n);
            settled(world).await;
        }
        7 => {
            // One replica cut off from all, as when its host's cable is pulled.
            let Some(n) = up(world, dice) else { return };
            let me = Who::Replica(n);
            world.say(format_args!("replica r{n} is cut off"));
            world.change_net(|net| {
                net.paused.insert(me);
            });
            sleep(dice.millis(1000..=20_000)).await;
            world.say(format_args!("replica r{n} is joined again"));
            world.change_net(|net| {
                net.paused.remove(&me);
            });
            settled(world).await;
        }
        _ => break_connection(world, dice).await,
    }
}

/// Until all replicas serve and every node and client has had time to find one.
async fn settled(world: &World) {
    while lock(&world.replicas).len() < world.profile.replicas {
        sleep(Duration::from_millis(200)).await;
    }
    sleep(Duration::from_secs(12)).await;
}

fn rough(world: &World, dice: &mut Dice) {
    match dice.number(0..=19) {
        0..=3 => of_itself(world, dice),
        4 => restart_client(world, dice),
        5 | 6 => kill_node(world, dice),
        7 => succeed(world, dice),
        8 => pause(world, dice),
        9 | 10 => restart_replica(world, dice),
        11 | 12 => cut(world, dice),
        13 => cut_from_store(world, dice),
        14 => lose_store(world, dice),
        15 => slow(world, dice),
        16 => many_cut(world, dice),
        _ => {
            let (world, mut dice) = (world.clone(), dice.fork());
            tokio::spawn(async move { break_connection(&world, &mut dice).await });
        }
    }
}

/// Instances come, go and change.
fn of_itself(world: &World, dice: &mut Dice) {
    let Some(who) = running(world, dice) else {
        return;
    };
    let service = dice.index(world.profile.services);
    let id = dice.number(0..=2);
    let name = (format!("s{service}"), format!("i{id}"));
    let known = lock(&world.books)
        .get(&who)
        .is_some_and(|book| book.instances.contains_key(&name));
    if !known {
        return node::register(world, who, &name);
    }
    match dice.number(0..=2) {
        0 => {
            // One that drains leaves stock clients of its own will.
            let mut healths = vec![Health::Healthy, Health::Unhealthy];
            if !world.profile.gentle {
                healths.push(Health::Draining);
            }
            let health = dice.pick(&healths).unwrap_or(Health::Healthy);
            node::set_health(world, who, &name, health);
        }
        1 => node::deregister(world, who, &name),
        _ => {
            // A process that restarts: the same name, another address.
            node::deregister(world, who, &name);
            node::register(world, who, &name);
        }
    }
}

fn restart_client(world: &World, dice: &mut Dice) {
    let n = dice.index(world.profile.clients);
    let Some(held) = client::kill(world, n) else {
        return;
    };
    let keeps = dice.chance(500);
    let held = if keeps {
        held
    } else {
        Held::new(held.flavor, &held.service)
    };
    after(world, dice, 0..=5000, move |world, dice| {
        client::start(world, dice, n, held);
    });
}

fn kill_node(world: &World, dice: &mut Dice) {
    let Some(who @ Who::Node(n, _)) = running(world, dice) else {
        return;
    };
    if laws::is_contested(world, n) {
        return;
    }
    node::kill(world, who);
    if dice.chance(800) {
        let names = some_names(world, dice);
        after(world, dice, 0..=30_000, move |world, dice| {
            node::start_again(world, dice, n, &names);
        });
    }
}

/// A process sleeps, another takes its node over, the old one wakes up and has to see that it is old.
fn succeed(world: &World, dice: &mut Dice) {
    let Some(old @ Who::Node(n, _)) = running(world, dice) else {
        return;
    };
    if laws::is_contested(world, n) {
        return;
    }
    let names = some_names(world, dice);
    if dice.chance(700) {
        world.say(format_args!("{old} sleeps"));
        world.change_net(|net| {
            net.paused.insert(old);
        });
    }
    let (world, mut dice) = (world.clone(), dice.fork());
    tokio::spawn(async move {
        sleep(dice.millis(0..=15_000)).await;
        if !(lock(&world.books).contains_key(&old) && node::is_rightful(&world, old)) {
            return;
        }
        node::start(&world, dice.fork(), n, &names);
        // The old one has something to say while it does not know yet.
        let name = ("s0".to_owned(), "i0".to_owned());
        for _ in 0..4 {
            sleep(dice.millis(0..=60)).await;
            node::register(&world, old, &name);
            sleep(dice.millis(0..=60)).await;
            node::deregister(&world, old, &name);
        }
        sleep(dice.millis(0..=12_000)).await;
        world.say(format_args!("{old} is awake"));
        world.change_net(|net| {
            net.paused.remove(&old);
        });
        sleep(dice.millis(1000..=30_000)).await;
        node::kill(&world, old);
    });
}

fn pause(world: &World, dice: &mut Dice) {
    let Some(who) = running(world, dice) else {
        return;
    };
    world.say(format_args!("{who} sleeps"));
    world.change_net(|net| {
        net.paused.insert(who);
    });
    after(world, dice, 500..=25_000, move |world, _| {
        world.say(format_args!("{who} is awake"));
        world.change_net(|net| {
            net.paused.remove(&who);
        });
    });
}

fn restart_replica(world: &World, dice: &mut Dice) {
    let Some(n) = up(world, dice) else { return };
    let kill = dice.chance(600);
    let (world, mut dice) = (world.clone(), dice.fork());
    tokio::spawn(async move {
        if kill {
            replica::kill(&world, n);
        } else {
            replica::stop(&world, &mut dice, n).await;
        }
        sleep(dice.millis(0..=12_000)).await;
        replica::start(&world, n);
    });
}

/// A node or a client cannot reach a replica, in one direction or both.
fn cut(world: &World, dice: &mut Dice) {
    let (replica, other) = link(world, dice);
    cut_apart(world, dice, replica, other, 500..=30_000);
}

fn cut_from_store(world: &World, dice: &mut Dice) {
    let n = dice.index(world.profile.replicas);
    // Up to more than twice as long as a client may know less than the store.
    cut_apart(world, dice, Who::Replica(n), Who::Store, 500..=75_000);
}

/// Most nodes at once, from everything: suspects.
fn many_cut(world: &World, dice: &mut Dice) {
    let nodes: Vec<Who> = lock(&world.books).keys().copied().collect();
    for node in nodes.into_iter().take(4) {
        for n in 0..world.profile.replicas {
            cut_apart(world, dice, Who::Replica(n), node, 12_000..=30_000);
        }
    }
}

fn cut_apart(world: &World, dice: &mut Dice, a: Who, b: Who, lasts: std::ops::RangeInclusive<u64>) {
    let ways = dice.number(0..=3);
    let pairs: &[(Who, Who)] = match ways {
        0 => &[(a, b)],
        1 => &[(b, a)],
        _ => &[(a, b), (b, a)],
    };
    let pairs = pairs.to_vec();
    world.say(format_args!("cut: {pairs:?}"));
    world.change_net(|net| net.blocked.extend(pairs.iter().copied()));
    after(world, dice, lasts, move |world, _| {
        world.say(format_args!("joined: {pairs:?}"));
        world.change_net(|net| {
            for pair in &pairs {
                net.blocked.remove(pair);
            }
        });
    });
}

/// The store's leader is gone for a while, or its quorum.
fn lose_store(world: &World, dice: &mut Dice) {
    if !lock(&world.store).up {
        return;
    }
    world.say(format_args!("the store is down"));
    store::set_up(world, false);
    let long = dice.chance(250);
    let lasts = if long { 5000..=40_000 } else { 300..=4000 };
    after(world, dice, lasts, |world, _| {
        world.say(format_args!("the store is up"));
        store::set_up(world, true);
    });
}

fn slow(world: &World, dice: &mut Dice) {
    let n = dice.index(world.profile.replicas);
    let who = if dice.chance(500) {
        Who::Store
    } else {
        Who::Replica(n)
    };
    world.say(format_args!("{who} is slow"));
    world.change_net(|net| {
        net.slow.insert(who);
    });
    after(world, dice, 1000..=15_000, move |world, _| {
        world.say(format_args!("{who} is as quick as before"));
        world.change_net(|net| {
            net.slow.remove(&who);
        });
    });
}

/// A stall that is over before anybody notices, between one pair.
async fn break_connection(world: &World, dice: &mut Dice) {
    let (replica, other) = link(world, dice);
    world.say(format_args!("a stall between {replica} and {other}"));
    world.change_net(|net| net.blocked.extend([(replica, other), (other, replica)]));
    sleep(dice.millis(200..=2500)).await;
    world.change_net(|net| {
        net.blocked.remove(&(replica, other));
        net.blocked.remove(&(other, replica));
    });
}

/// All is whole again; who is down comes back.
pub(super) async fn end(world: &World) {
    // What was begun ends of itself within 45 s.
    sleep(Duration::from_secs(46)).await;
    world.say(format_args!("the turmoil is over"));
    world.change_net(|net| {
        net.blocked.clear();
        net.paused.clear();
        net.slow.clear();
    });
    if !lock(&world.store).up {
        store::set_up(world, true);
    }
    world.calm.store(true, Ordering::Relaxed);
}

fn running(world: &World, dice: &mut Dice) -> Option<Who> {
    let rightful = lock(&world.rightful).clone();
    let books = lock(&world.books);
    let all = rightful
        .into_iter()
        .map(|(node, process)| Who::Node(node, process));
    let all: Vec<Who> = all.filter(|who| books.contains_key(who)).collect();
    drop(books);
    let all: Vec<Who> = all
        .into_iter()
        .filter(|who| world.net(|net| !net.paused.contains(who)))
        .collect();
    dice.pick(&all)
}

/// A replica, and a node or a client that may be connected to it.
fn link(world: &World, dice: &mut Dice) -> (Who, Who) {
    let replica = Who::Replica(dice.index(world.profile.replicas));
    let client = Who::Client(dice.index(world.profile.clients));
    match running(world, dice) {
        Some(node) if dice.chance(600) => (replica, node),
        _ => (replica, client),
    }
}

fn up(world: &World, dice: &mut Dice) -> Option<usize> {
    let all: Vec<usize> = lock(&world.replicas).keys().copied().collect();
    dice.pick(&all)
}

fn after(
    world: &World,
    dice: &mut Dice,
    millis: std::ops::RangeInclusive<u64>,
    deed: impl FnOnce(&World, Dice) + Send + 'static,
) {
    let world = world.clone();
    let (wait, own) = (dice.millis(millis), dice.fork());
    tokio::spawn(async move {
        sleep(wait).await;
        deed(&world, own);
    });
}
