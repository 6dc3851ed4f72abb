//! A proxy that drains finishes what it has; a proxy that dies comes back with its state.

use std::time::{Duration, Instant};

use heddle_proto::status::v1::ListProxiesRequest;
use heddle_tests::echo::{call, channel, payload, reach};
use heddle_tests::load::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::open_stream::{OpenStream, refuses_connections};
use heddle_tests::wait::{seen, until};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus::Serving;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_stops_finishes_its_calls_and_exits_with_connections_open() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    let idle = mesh.channel("a");
    reach(&idle, &["a1"]).await;
    let stream = stop_twice(&mut mesh).await;
    // The time itself is tested: a proxy that stopped at once would be gone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    stream.continues().await;
    // In less than the drain timeout: idle connections do not keep a proxy alive.
    mesh.proxy_exits("a").await;
    drop(idle);
}

/// Signals twice, as launchers do that signal a process and then its group: that does not yet mean "stop at once". Returns a
/// call that was in flight before.
async fn stop_twice(mesh: &mut Mesh) -> OpenStream {
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

/// A health watch, held open as stock clients do.
async fn watch(addr: std::net::SocketAddr, service: &str) -> tonic::Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let watching = HealthClient::new(channel(addr)).watch(request).await;
    let mut answers = watching.expect("a watch").into_inner();
    let first = answers.message().await.expect("an answer");
    assert_eq!(first.map(|first| first.status()), Some(Serving));
    answers
}

/// Issue 10, D5: one held `Health/Watch` kept a node dark for 60 s.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_a_proxy_answers_itself_end_with_its_drain() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    reach(&mesh.channel("a"), &["a1"]).await;
    let node = mesh.node("a");
    let mut held = Vec::new();
    for (addr, service) in [
        (node.outbound, "heddle-echo"),
        (node.outbound, ""),
        (node.admin, ""),
        (node.agent, ""),
    ] {
        held.push(watch(addr, service).await);
    }
    mesh.node("a").proxy().signal("TERM");
    // In less than the time that a drain may take.
    mesh.proxy_exits("a").await;
    for mut watch in held {
        let end = loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if all were well"),
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::Unavailable, "{end}");
    }
}

/// Issue 10, D5: it let go of its ports and its state dir at its end only.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_serves_beside_a_proxy_that_drains() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    for (node, id) in [("a", "a1"), ("b", "b1")] {
        mesh.echo(node, id).await;
    }
    reach(&mesh.channel("b"), &["a1", "b1"]).await;
    let stream = loop {
        let stream = OpenStream::start(mesh.channel("a")).await;
        if stream.instance == "a1" {
            break stream;
        }
    };
    let load = Load::start(&Plan::new(Kind::Safe, &[mesh.node("b").outbound]));
    load.more(100).await;
    mesh.node("a").proxy().signal("TERM");
    refuses_connections(&mesh, "a").await;
    let mut old = mesh.give_proxy("a");
    mesh.start_proxy("a").await;
    assert_eq!(old.exited(), None, "a call is still in flight there");
    let channel = mesh.channel("a");
    reach(&channel, &["a1", "b1"]).await;
    until("both processes of the node are listed", async || {
        let listed = mesh.status().list_proxies(ListProxiesRequest {}).await;
        let proxies = listed.map_err(|status| status.to_string())?.into_inner();
        let of_node = proxies.proxies.into_iter().filter(|it| it.node_id == "a");
        let mut drain: Vec<_> = of_node.map(|it| it.draining).collect();
        drain.sort_unstable();
        seen(drain == [false, true], format!("{drain:?}"))
    })
    .await;
    mesh.control_has(&["a1", "b1"]).await;
    // The instance is the successor's: it gets its state.
    until(
        "the instance has registered with the successor",
        async || {
            let output = mesh.instance_output("a", "a1");
            seen(output.matches("registered").count() >= 2, output)
        },
    )
    .await;
    load.more(100).await;
    stream.continues().await;
    old.exit_cleanly().await;
    // The old one's end takes nothing from the new one.
    reach(&channel, &["a1", "b1"]).await;
    mesh.control_has(&["a1", "b1"]).await;
    load.more(100).await;
    load.finish().await.assert_none_failed(300);
}

/// Issue 10, D5: the old process must not take the files of the new one's sockets along.
#[tokio::test(flavor = "multi_thread")]
async fn a_successors_unix_sockets_outlive_the_old_process() {
    let folder = heddle_tests::temp::folder();
    let path = |name: &str| format!("unix:{}", folder.path().join(name).display());
    let args = ["outbound", "agent", "admin"].map(|name| format!("--{name}={}", path(name)));
    let mut builder = Mesh::builder();
    for arg in &args {
        builder = builder.proxy_arg(arg);
    }
    let mut mesh = builder.start().await;
    mesh.echo("a", "a1").await;
    reach(&mesh.channel("a"), &["a1"]).await;
    let stream = OpenStream::start(mesh.channel("a")).await;
    mesh.node("a").proxy().signal("TERM");
    refuses_connections(&mesh, "a").await;
    let mut old = mesh.give_proxy("a");
    mesh.start_proxy("a").await;
    stream.continues().await;
    old.exit_cleanly().await;
    for name in ["outbound", "agent", "admin"] {
        let connected = tokio::net::UnixStream::connect(folder.path().join(name)).await;
        connected.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
