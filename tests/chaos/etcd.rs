//! etcd's leader killed or frozen and its quorum lost, under load from two nodes' proxies and from stock clients: reads
//! continue from the replicas' views, and changes made meanwhile arrive when etcd is back.

use std::time::{Duration, Instant};

use heddle_tests::echo::reach;
use heddle_tests::load::{Kind, Load, Plan};

use crate::fixture::{BASE, Fixture, Hosts, cluster};

#[tokio::test(flavor = "multi_thread")]
async fn its_leader_killed_costs_no_call() {
    let mut fixture = Fixture::start(Hosts::Same).await;
    let leader = fixture.etcd.leader().await;
    fixture.etcd.kill(leader).await;
    fixture.calls_continue().await;
    fixture.endpoints_update().await;
    fixture.etcd.restart(leader).await;
    fixture.finish().await;
}

/// It keeps its connections and answers nothing, so every client has to detect it.
#[tokio::test(flavor = "multi_thread")]
async fn its_leader_frozen_costs_no_call() {
    let mut fixture = Fixture::start(Hosts::Same).await;
    let leader = fixture.etcd.leader().await;
    fixture.etcd.freeze(leader);
    fixture.calls_continue().await;
    fixture.endpoints_update().await;
    fixture.etcd.thaw(leader);
    fixture.finish().await;
}

/// Kills the leader and one more member for this time.
async fn without_quorum(outage: Duration) {
    let mut fixture = Fixture::start(Hosts::Same).await;
    let begun = Instant::now();
    let lost = fixture.etcd.lose_quorum().await;
    fixture.calls_continue().await;

    // A node works for itself: an instance that registers on it is reached from it at once.
    fixture.add("a", "a2").await;
    reach(&fixture.mesh.channel("a"), &["a1", "a2", "b1"]).await;
    fixture.calls_continue_until(begun + outage).await;

    fixture.etcd.regain_quorum(lost).await;
    fixture.all_callers_reach(&["a1", "a2", "b1"]).await;
    fixture.mesh.replicas_agree(&["a1", "a2", "b1"]).await;
    fixture.mesh.stop_instance("a", "a2").await;
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_quorum_lost_costs_no_call() {
    // Longer than a lease.
    without_quorum(Duration::from_secs(15)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute: ./test --long"]
async fn its_quorum_lost_for_a_minute_costs_no_call() {
    without_quorum(Duration::from_secs(60)).await;
}

/// Only callers with a proxy: a direct client cannot learn of the removal and may see the instance gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_and_went_while_its_quorum_was_lost_is_recorded_afterwards() {
    let (mut etcd, builder, _) = cluster(Hosts::Same).await;
    let mut mesh = builder.start().await;
    for (node, id) in BASE.into_iter().chain([("b", "b2")]) {
        mesh.echo(node, id).await;
    }
    for node in ["a", "b"] {
        reach(&mesh.channel(node), &["a1", "b1", "b2"]).await;
    }
    let through = [mesh.node("a").outbound, mesh.node("b").outbound];
    let load = Load::start(&Plan::new(Kind::Unsafe, &through));
    load.more(100).await;
    let lost = etcd.lose_quorum().await;

    mesh.stop_instance("b", "b1").await;
    reach(&mesh.channel("b"), &["a1", "b2"]).await;
    mesh.echo("a", "a2").await;
    reach(&mesh.channel("a"), &["a1", "a2", "b2"]).await;
    mesh.echo("a", "brief").await;
    mesh.stop_instance("a", "brief").await;
    load.more(200).await;

    etcd.regain_quorum(lost).await;
    mesh.replicas_agree(&["a1", "a2", "b2"]).await;
    for node in ["a", "b"] {
        reach(&mesh.channel(node), &["a1", "a2", "b2"]).await;
    }
    load.more(100).await;
    load.finish().await.assert_none_failed(400);
}

/// Writes are repeated while the store does not answer; each event must exist once.
#[tokio::test(flavor = "multi_thread")]
async fn what_died_while_its_quorum_was_lost_has_one_event_with_its_cause() {
    let (mut etcd, builder, _) = cluster(Hosts::Same).await;
    let mut mesh = builder.start().await;
    for (node, id) in BASE.into_iter().chain([("a", "a2"), ("b", "b2")]) {
        mesh.echo(node, id).await;
    }
    mesh.replicas_agree(&["a1", "a2", "b1", "b2"]).await;
    let lost = etcd.lose_quorum().await;
    mesh.kill_instance("a", "a2").await;
    // Longer than a lease, so that sessions end and are reopened: the time itself is tested.
    tokio::time::sleep(Duration::from_secs(12)).await;
    mesh.kill_instance("b", "b2").await;
    reach(&mesh.channel("b"), &["a1", "b1"]).await;

    etcd.regain_quorum(lost).await;
    mesh.replicas_agree(&["a1", "b1"]).await;
    let events = mesh.events().await.into_iter();
    let expired = events.filter(|event| event.kind == "instance-expired");
    let mut expired_instances: Vec<_> = expired.map(|it| (it.instance, it.cause)).collect();
    expired_instances.sort();
    let broke = |id: &str| (id.to_owned(), "its keep-alive stream broke".to_owned());
    assert_eq!(expired_instances, [broke("a2"), broke("b2")]);
}
