//! The control plane is down under load, and proxies restart meanwhile from their state dirs: no call fails.

use std::time::{Duration, Instant};

use heddle_tests::echo::{call, payload, reach};
use heddle_tests::load::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;

use heddle_tests::open_stream::{OpenStream, refuses_connections};

const AWAY: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn ten_seconds_without_it_cost_no_call_even_to_a_proxy_that_restarts() {
    let mut mesh = Mesh::builder().nodes(3).start().await;
    for (node, id) in [("a", "a1"), ("b", "b1"), ("b", "b2")] {
        mesh.echo(node, id).await;
    }
    for node in ["a", "b", "c"] {
        reach(&mesh.channel(node), &["a1", "b1", "b2"]).await;
    }
    let through = [mesh.node("a").outbound, mesh.node("b").outbound];
    let load = Load::start(&Plan::new(Kind::Unsafe, &through));
    load.more(100).await;

    mesh.kill_control().await;
    let gone = Instant::now();
    load.more(200).await;

    // Node c has only callers; its proxy restarts without a control plane.
    mesh.stop_proxy("c").await;
    mesh.start_proxy("c").await;
    let first = call(mesh.node("c").outbound, payload("first")).await;
    assert_eq!(
        first.expect("the first call after the ready line").payload,
        "first"
    );
    reach(&mesh.channel("c"), &["a1", "b1", "b2"]).await;
    let late = Load::start(&Plan::new(Kind::Unsafe, &[mesh.node("c").outbound]));

    tokio::time::sleep(AWAY.saturating_sub(gone.elapsed())).await;
    load.more(100).await;
    mesh.start_control().await;
    load.more(300).await;
    late.more(100).await;
    late.finish().await.assert_none_failed(100);
    load.finish().await.assert_none_failed(700);

    // And updates arrive again: a new instance is reached from everywhere.
    mesh.echo("c", "c1").await;
    for node in ["a", "b", "c"] {
        reach(&mesh.channel(node), &["a1", "b1", "b2", "c1"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_of_use_to_itself_while_the_control_plane_is_away() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    reach(&mesh.channel("a"), &["a1"]).await;
    mesh.kill_control().await;
    let load = Load::start(&Plan::new(Kind::Unsafe, &[mesh.node("a").outbound]));
    mesh.echo("a", "a2").await;
    reach(&mesh.channel("a"), &["a1", "a2"]).await;
    mesh.stop_instance("a", "a1").await;
    reach(&mesh.channel("a"), &["a2"]).await;
    load.more(50).await;
    load.finish().await.assert_none_failed(50);

    mesh.start_control().await;
    mesh.control_has(&["a2"]).await;
}

/// The stop and start cannot be reported: other proxies see it by their links, and the state dir has its instances.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_and_restarts_without_it_costs_no_call() {
    let mut mesh = Mesh::builder().nodes(3).start().await;
    for (node, id) in [("a", "a1"), ("c", "c1")] {
        mesh.echo(node, id).await;
    }
    for node in ["a", "b", "c"] {
        reach(&mesh.channel(node), &["a1", "c1"]).await;
    }
    for (file, id) in [("instances", "c1"), ("xds", "a1")] {
        mesh.saved("c", file, id).await;
    }
    let through = [mesh.node("a").outbound, mesh.node("b").outbound];
    let load = Load::start(&Plan::new(Kind::Unsafe, &through));
    load.more(100).await;
    mesh.kill_control().await;

    // It finishes what it has accepted, from its own callers and from others.
    let mut open = Vec::new();
    for node in ["a", "c"] {
        open.push(open_on(&mesh, node, "c1").await);
    }
    mesh.node("c").proxy().signal("TERM");
    refuses_connections(&mesh, "c").await;
    load.more(100).await;
    for stream in open {
        stream.continues().await;
    }
    mesh.proxy_exits("c").await;
    load.more(100).await;

    mesh.start_proxy("c").await;
    let back = Instant::now();
    let first = call(mesh.node("c").outbound, payload("first")).await;
    assert_eq!(
        first.expect("the first call after the ready line").payload,
        "first"
    );
    // Before the control plane could report it, and from other nodes too.
    for node in ["a", "b", "c"] {
        reach(&mesh.channel(node), &["a1", "c1"]).await;
    }
    mesh.start_control().await;
    mesh.control_has(&["a1", "c1"]).await;
    load.more(100).await;
    let log = load.finish().await;
    log.assert_none_failed(400);
    let answered = log.answered_since(back);
    assert!(answered.contains_key("c1"), "{answered:?}");

    // And updates arrive again: an instance that leaves is no longer called.
    mesh.stop_instance("c", "c1").await;
    for node in ["a", "b", "c"] {
        reach(&mesh.channel(node), &["a1"]).await;
    }
}

/// A stream through a node's proxy to this instance.
async fn open_on(mesh: &Mesh, node: &str, id: &str) -> OpenStream {
    // Choice is random among equals: so many are never needed.
    for _ in 0..200 {
        let stream = OpenStream::start(mesh.channel(node)).await;
        if stream.instance == id {
            return stream;
        }
    }
    panic!("no stream through node {node} stands on {id}");
}

/// The same outage for a minute, with several proxies killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: ./test --long"]
async fn a_minute_without_it_and_proxies_killed_meanwhile() {
    let mut mesh = Mesh::builder().nodes(3).start().await;
    for (node, id) in [("a", "a1"), ("b", "b1")] {
        mesh.echo(node, id).await;
    }
    for node in ["a", "b", "c"] {
        reach(&mesh.channel(node), &["a1", "b1"]).await;
    }
    for id in ["a1", "b1"] {
        mesh.saved("c", "xds", id).await;
    }
    mesh.kill_control().await;
    let load = Load::start(&Plan::new(Kind::Unsafe, &[mesh.node("a").outbound]));
    let end = Instant::now() + Duration::from_secs(60);
    let mut calls = 100;
    while Instant::now() < end {
        mesh.kill_proxy("c").await;
        mesh.start_proxy("c").await;
        let first = call(mesh.node("c").outbound, payload("first")).await;
        assert_eq!(
            first.expect("the first call after the ready line").payload,
            "first"
        );
        load.more(100).await;
        calls += 100;
    }
    mesh.start_control().await;
    load.more(100).await;
    load.finish().await.assert_none_failed(calls);
}

/// Longer than any lease and back-off, while instances come and go on their nodes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: ./test --long"]
async fn three_minutes_without_it_cost_no_call_and_nothing_flaps_afterwards() {
    let nodes = ["a", "b", "c"];
    let mut mesh = Mesh::builder().nodes(3).start().await;
    for (node, id) in [("a", "a1"), ("b", "b0"), ("b", "b1")] {
        mesh.echo(node, id).await;
    }
    for node in nodes {
        reach(&mesh.channel(node), &["a1", "b0", "b1"]).await;
    }
    let through = nodes.map(|node| mesh.node(node).outbound);
    let load = Load::start(&Plan::new(Kind::Unsafe, &through));
    load.more(100).await;

    mesh.kill_control().await;
    let end = Instant::now() + Duration::from_secs(180);
    // An instance that all nodes call stops too; only its own node b can know.
    mesh.stop_instance("b", "b0").await;
    reach(&mesh.channel("b"), &["a1", "b1"]).await;
    mesh.echo("c", "c1").await;
    let mut calls = 0;
    while Instant::now() < end {
        mesh.echo("c", "brief").await;
        reach(&mesh.channel("c"), &["a1", "b1", "brief", "c1"]).await;
        mesh.stop_instance("c", "brief").await;
        reach(&mesh.channel("c"), &["a1", "b1", "c1"]).await;
        load.more(1_000).await;
        calls += 1_000;
    }

    mesh.start_control().await;
    let all = ["a1", "b1", "c1"];
    mesh.control_has(&all).await;
    for node in nodes {
        reach(&mesh.channel(node), &all).await;
    }
    nothing_flaps(&mesh, &load, &all).await;
    for node in nodes {
        reach(&mesh.channel(node), &all).await;
    }
    load.finish().await.assert_none_failed(calls);
}

/// For longer than a lease and the time that a new leader waits, these instances are there and no node expires.
async fn nothing_flaps(mesh: &Mesh, load: &Load, ids: &[&str]) {
    let end = Instant::now() + Duration::from_secs(25);
    while Instant::now() < end {
        let service = mesh.service("heddle-echo").await.expect("it is served");
        let there = service.endpoints.iter().map(|one| one.id.as_str());
        assert_eq!(there.collect::<Vec<_>>(), ids, "it has gone or come");
        load.more(100).await;
    }
    let events = mesh.events().await;
    let has_event = |kinds: &[&str]| {
        let mut kinds_found = events.iter().map(|event| event.kind.as_str());
        kinds_found.any(|kind| kinds.contains(&kind))
    };
    assert!(has_event(&["node-joined"]), "{events:#?}");
    let given_up = ["node-expired", "node-suspect", "node-superseded"];
    assert!(!has_event(&given_up), "{events:#?}");
}
