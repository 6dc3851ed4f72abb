//! Replicas of the control plane killed, restarted and cut off, under load from two nodes' proxies and from stock
//! clients: nobody notices, and afterwards all replicas say the same.

use std::time::{Duration, Instant};

use crate::scene::{BASE, Place, Scene};

/// Longer than a lease (10 s): whoever could not renew it has lost it.
const CUT: Duration = Duration::from_secs(13);

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_costs_no_call() {
    let mut scene = Scene::start(Place::Here).await;
    let victim = scene.mesh.replica_of("a", "").await;
    scene.mesh.kill_replica(victim).await;
    scene.goes_on().await;
    scene.follows().await;
    scene.mesh.start_replica(victim).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_one_after_another_costs_no_call() {
    let mut scene = Scene::start(Place::Here).await;
    for name in ["r1", "r2", "r3"] {
        scene.mesh.stop_replica(name).await;
        scene.goes_on().await;
        scene.mesh.start_replica(name).await;
        scene.goes_on().await;
    }
    scene.finish().await;
}

/// Its node and its clients, of whom none is told that their connections lead nowhere now.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_from_all_costs_no_call() {
    let scene = Scene::start(Place::Apart).await;
    let victim = scene.mesh.replica_of("a", "").await;
    scene.mesh.replica(victim).host().unplug();
    scene.goes_on_until(Instant::now() + CUT).await;
    scene.mesh.replica_of("a", victim).await;
    scene.mesh.replica(victim).host().plug_in();
    scene.finish().await;
}

/// Its clients reach it all the time; it must not keep their nodes where no lease is renewed, nor any client where no
/// news come in.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_from_etcd_alone_costs_no_call() {
    let mut scene = Scene::start(Place::Apart).await;
    let victim = scene.mesh.replica_of("a", "").await;
    let etcd = scene.etcd.client_addr(0).ip();
    scene.mesh.replica(victim).host().lose(etcd);
    scene.goes_on_until(Instant::now() + CUT).await;
    scene.mesh.replica_of("a", victim).await;
    scene.follows().await;
    scene.mesh.replica(victim).host().find(etcd);
    scene.finish().await;
}

/// Those that it leads would call an instance on and on that has gone for all others. (A node whose own session is there
/// cannot tell anybody that an instance goes before it has moved, which takes as long as an instance waits.)
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_unheard_by_one_costs_no_call() {
    let mut scene = Scene::start(Place::Apart).await;
    let (victim, node) = envoys_and_not_of(&mut scene).await;
    scene.add(node, "new").await;
    scene.everybody_reaches(&["a1", "b1", "new"]).await;
    let etcd = scene.etcd.client_addr(0).ip();
    scene.mesh.replica(victim).host().lose(etcd);
    scene.mesh.stop_instance(node, "new").await;
    scene.everybody_reaches(&["a1", "b1"]).await;
    scene.goes_on().await;
    scene.mesh.replica(victim).host().find(etcd);
    scene.finish().await;
}

/// The replica that leads Envoy, and a node whose session another one holds.
async fn envoys_and_not_of(scene: &mut Scene) -> (&'static str, &'static str) {
    loop {
        let victim = scene.replica_of_envoy().await;
        for (node, _) in BASE {
            if scene.mesh.replica_of(node, "").await != victim {
                return (victim, node);
            }
        }
        // All are at one: wherever chance takes them.
        scene.mesh.stop_replica(victim).await;
        for (node, _) in BASE {
            scene.mesh.replica_of(node, victim).await;
        }
        scene.mesh.start_replica(victim).await;
    }
}
