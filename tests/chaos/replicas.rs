//! Replicas of the control plane killed, restarted and cut off, under load from two nodes' proxies and from stock
//! clients: no call fails, and afterwards all replicas agree.

use std::time::{Duration, Instant};

use crate::fixture::{BASE, Fixture, Hosts};

/// Longer than a lease (10 s): a node that could not renew it has lost it.
const CUT: Duration = Duration::from_secs(13);

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_costs_no_call() {
    let mut fixture = Fixture::start(Hosts::Same).await;
    let victim = fixture.mesh.replica_of("a", "").await;
    fixture.mesh.kill_replica(victim).await;
    fixture.calls_continue().await;
    fixture.endpoints_update().await;
    fixture.mesh.start_replica(victim).await;
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_one_after_another_costs_no_call() {
    let mut fixture = Fixture::start(Hosts::Same).await;
    for name in ["r1", "r2", "r3"] {
        fixture.mesh.stop_replica(name).await;
        fixture.calls_continue().await;
        fixture.mesh.start_replica(name).await;
        fixture.calls_continue().await;
    }
    fixture.finish().await;
}

/// Its node and its clients get no notification that their connections are dead.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_from_all_costs_no_call() {
    let fixture = Fixture::start(Hosts::Separate).await;
    let victim = fixture.mesh.replica_of("a", "").await;
    fixture.mesh.replica(victim).host().unplug();
    fixture.calls_continue_until(Instant::now() + CUT).await;
    fixture.mesh.replica_of("a", victim).await;
    fixture.mesh.replica(victim).host().plug_in();
    fixture.finish().await;
}

/// Its clients reach it all the time. It must send away the nodes, whose leases it cannot renew, and the clients, for whom it
/// gets no updates.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_from_etcd_alone_costs_no_call() {
    let mut fixture = Fixture::start(Hosts::Separate).await;
    let victim = fixture.mesh.replica_of("a", "").await;
    let etcd = fixture.etcd.client_addr(0).ip();
    fixture.mesh.replica(victim).host().block(etcd);
    fixture.calls_continue_until(Instant::now() + CUT).await;
    fixture.mesh.replica_of("a", victim).await;
    fixture.endpoints_update().await;
    fixture.mesh.replica(victim).host().unblock(etcd);
    fixture.finish().await;
}

/// Without lag detection its clients would keep calling an instance that is removed everywhere else. (A node whose session is
/// there can report a removal only after it has moved, which takes as long as an instance waits.)
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_unheard_by_one_costs_no_call() {
    let mut fixture = Fixture::start(Hosts::Separate).await;
    let (victim, node) = envoys_and_not_of(&mut fixture).await;
    fixture.add(node, "new").await;
    fixture.all_callers_reach(&["a1", "b1", "new"]).await;
    let etcd = fixture.etcd.client_addr(0).ip();
    fixture.mesh.replica(victim).host().block(etcd);
    fixture.mesh.stop_instance(node, "new").await;
    fixture.all_callers_reach(&["a1", "b1"]).await;
    fixture.calls_continue().await;
    fixture.mesh.replica(victim).host().unblock(etcd);
    fixture.finish().await;
}

/// The replica of Envoy, and a node whose session is at another replica.
async fn envoys_and_not_of(fixture: &mut Fixture) -> (&'static str, &'static str) {
    loop {
        let victim = fixture.replica_of_envoy().await;
        for (node, _) in BASE {
            if fixture.mesh.replica_of(node, "").await != victim {
                return (victim, node);
            }
        }
        // All are at one replica: restart it until chance separates them.
        fixture.mesh.stop_replica(victim).await;
        for (node, _) in BASE {
            fixture.mesh.replica_of(node, victim).await;
        }
        fixture.mesh.start_replica(victim).await;
    }
}
