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

/// It keeps its connections and answers nothing: everybody has to notice by themselves.
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

/// The leader and one more are killed for so long.
async fn without_quorum(outage: Duration) {
    let mut fixture = Fixture::start(Hosts::Same).await;
    let begun = Instant::now();
    let lost = fixture.etcd.lose_quorum().await;
    fixture.calls_continue().await;

    // A node is of use to itself: what registers on it is reached from it at once.
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

/// Only callers with a proxy here: who calls an instance directly and cannot be told that it goes may see it gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_and_went_while_its_quorum_was_lost_is_told_afterwards() {
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

/// What a store that does not answer is asked again and again is told once.
#[tokio::test(flavor = "multi_thread")]
async fn what_died_while_its_quorum_was_lost_is_told_once_and_with_its_cause() {
    let (mut etcd, builder, _) = cluster(Hosts::Same).await;
    let mut mesh = builder.start().await;
    for (node, id) in BASE.into_iter().chain([("a", "a2"), ("b", "b2")]) {
        mesh.echo(node, id).await;
    }
    mesh.replicas_agree(&["a1", "a2", "b1", "b2"]).await;
    let lost = etcd.lose_quorum().await;
    mesh.kill_instance("a", "a2").await;
    // Longer than a lease, so that sessions end and are opened anew: time itself is what is tested.
    tokio::time::sleep(Duration::from_secs(12)).await;
    mesh.kill_instance("b", "b2").await;
    reach(&mesh.channel("b"), &["a1", "b1"]).await;

    etcd.regain_quorum(lost).await;
    mesh.replicas_agree(&["a1", "b1"]).await;
    let events = mesh.events().await.into_iter();
    let expired = events.filter(|event| event.kind == "instance-expired");
    let mut told: Vec<_> = expired.map(|it| (it.instance, it.cause)).collect();
    told.sort();
    let broke = |id: &str| (id.to_owned(), "its keep-alive stream broke".to_owned());
    assert_eq!(told, [broke("a2"), broke("b2")]);
}
