//! A proxy that drains finishes what it has; a proxy that dies comes back with its state.

use std::time::{Duration, Instant};

use heddle_tests::echo::{call, payload, reach};
use heddle_tests::load::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;

use crate::open_stream::{OpenStream, refuses_connections};

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_stops_finishes_its_calls_and_exits_with_connections_open() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    let idle = mesh.channel("a");
    reach(&idle, &["a1"]).await;
    let stream = told_to_stop_twice(&mut mesh).await;
    // The time itself is tested: a proxy that stopped at once would be gone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    stream.continues().await;
    // In less than the drain timeout: idle connections do not keep a proxy alive.
    mesh.proxy_exits("a").await;
    drop(idle);
}

/// Signals twice, as launchers do that signal a process and then its group: that does not yet mean "stop at once". Returns a
/// call that was in flight before.
async fn told_to_stop_twice(mesh: &mut Mesh) -> OpenStream {
    for _ in 0..10 {
        let stream = OpenStream::start(mesh.channel("a")).await;
        let signalled = Instant::now();
        mesh.node("a").proxy().signal("TERM");
        refuses_connections(mesh, "a").await;
        mesh.node("a").proxy().signal("TERM");
        if signalled.elapsed() < Duration::from_secs(1) {
            return stream;
        }
        // This machine was too slow: a second signal after a second means "stop at once".
        drop(stream);
        mesh.proxy_exits("a").await;
        mesh.start_proxy("a").await;
    }
    panic!("two signals never came within a second");
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
    let log = load.finish().await;
    log.assert_none_failed(400);
    assert!(log.answered_since(killed).contains_key("c1"));
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
