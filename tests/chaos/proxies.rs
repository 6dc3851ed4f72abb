//! A proxy that drains finishes what it has; a proxy that dies comes back with its state.

use std::time::{Duration, Instant};

use heddle_proto::echo::v1::EchoRequest;
use heddle_tests::echo::{call, echo, payload, reach};
use heddle_tests::ledger::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::page::get;
use heddle_tests::until::{seen, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_stops_finishes_its_calls_and_exits_with_connections_open() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    let idle = mesh.channel("a");
    reach(&idle, &["a1"]).await;
    let outbound = mesh.node("a").outbound;
    let channel = heddle_tests::echo::channel(outbound);
    let slow = tokio::spawn(async move {
        let request = EchoRequest {
            delay_ms: 2_000,
            ..payload("slow")
        };
        echo(channel).unary(request).await
    });
    let admin = mesh.node("a").admin;
    until("the call is in flight", async || {
        let (_, text) = get(admin, "/metrics").await?;
        let active = text
            .lines()
            .find(|line| line.starts_with("heddle_active_calls"));
        let active = active.unwrap_or_default().to_owned();
        seen(active.ends_with(" 1"), active)
    })
    .await;
    let start = Instant::now();
    // Twice, as launchers do that signal a process and then its group: that is not yet "at once".
    mesh.node("a").proxy().signal("TERM");
    mesh.stop_proxy("a").await;
    let answer = slow.await.unwrap().expect("the call in flight is finished");
    assert_eq!(answer.into_inner().payload, "slow");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "idle connections keep no proxy alive"
    );
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_was_killed_comes_back_with_its_instances() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "b1").await;
    reach(&mesh.channel("a"), &["b1"]).await;
    mesh.saved("b", "instances", "b1").await;
    mesh.kill_proxy("b").await;
    mesh.start_proxy("b").await;
    // From its state dir, before the instance has registered again.
    let answer = call(mesh.node("b").outbound, payload("first")).await;
    assert_eq!(
        answer
            .expect("the first call after the ready line")
            .instance,
        "b1"
    );
    reach(&mesh.channel("a"), &["b1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_node_moves_the_calls_of_the_others() {
    let mut mesh = Mesh::builder().nodes(3).start().await;
    for (node, id) in [("b", "b1"), ("c", "c1")] {
        mesh.echo(node, id).await;
    }
    reach(&mesh.channel("a"), &["b1", "c1"]).await;
    let load = Load::start(&Plan::new(Kind::Safe, &[mesh.node("a").outbound]));
    load.more(100).await;
    mesh.kill_proxy("b").await;
    let killed = Instant::now();
    load.more(200).await;
    mesh.start_proxy("b").await;
    reach(&mesh.channel("a"), &["b1", "c1"]).await;
    load.more(100).await;
    let book = load.finish().await;
    book.assert_none_failed(400);
    assert!(book.answered_since(killed).contains_key("c1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_leaves_with_its_lease_and_comes_back() {
    let mut mesh = Mesh::builder().nodes(3).start().await;
    for (node, id) in [("b", "b1"), ("c", "c1")] {
        mesh.echo(node, id).await;
    }
    reach(&mesh.channel("a"), &["b1", "c1"]).await;
    // Frozen: its connections stay open and nothing comes over them, as behind a cut cable.
    mesh.node("b").proxy().signal("STOP");
    mesh.control_has(&["c1"]).await;
    reach(&mesh.channel("a"), &["c1"]).await;
    mesh.node("b").proxy().signal("CONT");
    mesh.control_has(&["b1", "c1"]).await;
    reach(&mesh.channel("a"), &["b1", "c1"]).await;
}
