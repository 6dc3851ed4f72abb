//! Replicas of the control plane killed, restarted and cut off, under load from two nodes' proxies and from stock
//! clients: nobody notices, and afterwards all replicas say the same.

use std::time::{Duration, Instant};

use crate::scene::{Place, Scene};

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

/// Its clients reach it all the time; it must not keep their nodes where no lease is renewed.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_from_etcd_alone_costs_no_call() {
    let scene = Scene::start(Place::Apart).await;
    let victim = scene.mesh.replica_of("a", "").await;
    let etcd = scene.etcd.client_addr(0).ip();
    scene.mesh.replica(victim).host().lose(etcd);
    scene.goes_on_until(Instant::now() + CUT).await;
    scene.mesh.replica_of("a", victim).await;
    scene.mesh.replica(victim).host().find(etcd);
    scene.finish().await;
}
