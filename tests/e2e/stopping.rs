//! A proxy or instance that stops cuts no call, reports that it stops, and leaves no trouble behind.

use std::pin::pin;
use std::time::Duration;

use heddle_proto::registry::v1::ListInstancesRequest;
use heddle_proto::status::v1::{GetMeshRequest, WatchEventsRequest, mesh::Verdict};
use heddle_tests::echo::reach;
use heddle_tests::mesh::Mesh;
use heddle_tests::open_stream::{OpenStream, refuses_connections};
use heddle_tests::process::{Process, Start};
use heddle_tests::tools::binary;
use heddle_tests::wait::{seen, until};
use tokio::time::sleep;
use tonic::Code;

/// A program that dies at SIGTERM with all its calls, as most do, by `heddle run` on node a.
async fn short_lived(mesh: &Mesh, options: &[&str]) -> Process {
    let echo = binary("heddle-echo");
    let program = format!(
        "{} --listen 127.0.0.1:$PORT --instance r1 --agent none & trap 'kill -9 $!; exit 0' TERM; wait",
        echo.display()
    );
    let mut process = Start::new("heddle run", &binary("heddle"))
        .args(["run", "--service", "heddle-echo", "--instance", "r1"])
        .args(options)
        .args(["--agent", &format!("http://{}", mesh.node("a").agent)])
        .args(["--", "sh", "-c", &program])
        .spawn();
    process.ready().await;
    process
}

/// Issue 10, D5: a call of 3 s was cut after 0.1 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_its_signal_when_its_calls_in_flight_have_ended() {
    let mesh = Mesh::builder().nodes(2).start().await;
    let mut process = short_lived(&mesh, &["--stop-timeout", "600"]).await;
    let mut open = Vec::new();
    for node in ["a", "b"] {
        reach(&mesh.channel(node), &["r1"]).await;
        open.push(OpenStream::start(mesh.channel(node)).await);
    }
    process.signal("TERM");
    mesh.drains("r1").await;
    for stream in open {
        assert_eq!(process.exited(), None, "a call is still in flight");
        stream.continues().await;
    }
    process.exit_cleanly().await;
}

/// Issue 10, D5: the successor does not know the calls of the process before it, which were cut after 0.1 s.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_proxy_that_was_stopped_before_are_waited_for() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    let mut process = short_lived(&mesh, &["--stop-timeout", "600"]).await;
    let mut open = Vec::new();
    for node in ["a", "b"] {
        reach(&mesh.channel(node), &["r1"]).await;
        open.push(OpenStream::start(mesh.channel(node)).await);
    }
    let mut old = mesh.give_proxy("a");
    old.signal("TERM");
    mesh.start_proxy("a").await;
    process.says("registering with its successor").await;
    reach(&mesh.channel("a"), &["r1"]).await;
    let newer = OpenStream::start(mesh.channel("a")).await;
    process.signal("TERM");
    mesh.drains("r1").await;
    newer.continues().await;
    for stream in open {
        assert_eq!(process.exited(), None, "a call is still in flight");
        stream.continues().await;
    }
    process.exit_cleanly().await;
    mesh.control_has(&[]).await;
    old.exit_cleanly().await;
}

/// Issue 10, D5: without a successor, there is no agent to deregister at.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_proxy_that_was_stopped_for_good_are_waited_for() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    let mut process = short_lived(&mesh, &["--stop-timeout", "600"]).await;
    let mut open = Vec::new();
    for node in ["a", "b"] {
        reach(&mesh.channel(node), &["r1"]).await;
        open.push(OpenStream::start(mesh.channel(node)).await);
    }
    mesh.node("a").proxy().signal("TERM");
    process.says("registering with its successor").await;
    for stream in &open {
        stream.asks_for_an_answer_in(Duration::from_secs(2)).await;
    }
    process.signal("TERM");
    for mut stream in open {
        stream.is_answered().await;
        stream.continues().await;
    }
    process.exit_cleanly().await;
    mesh.proxy_exits("a").await;
}

/// The kinds of r1's events, but for its health, the oldest first.
async fn what_became_of_r1(mesh: &Mesh) -> Vec<String> {
    let events = mesh.events().await.into_iter();
    let of_it = events.filter(|event| event.instance == "r1" && !event.kind.contains("healthy"));
    of_it.map(|event| event.kind).collect()
}

/// Issue 10, D5: the program and its proxy are stopped at once, as when a node is upgraded. The successor reported the
/// instance as expired, and `heddle run` logged that its registration was unknown.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_stopped_together_with_its_proxy_has_left() {
    for pause in [0, 20, 100] {
        let mut mesh = Mesh::builder().nodes(2).start().await;
        let mut process = short_lived(&mesh, &[]).await;
        for node in ["a", "b"] {
            reach(&mesh.channel(node), &["r1"]).await;
        }
        let mut old = mesh.give_proxy("a");
        process.signal("TERM");
        sleep(Duration::from_millis(pause)).await;
        old.signal("TERM");
        mesh.start_proxy("a").await;
        process.exit_cleanly().await;
        old.exit_cleanly().await;
        let output = process.output();
        let warned = output.contains("unknown") || output.contains("before every client");
        assert!(!warned, "{output}");
        until("it has left", async || {
            let kinds = what_became_of_r1(&mesh).await;
            seen(
                kinds == ["instance-joined", "instance-left"],
                format!("{kinds:?}"),
            )
        })
        .await;
        mesh.control_has(&[]).await;
    }
}

/// Issue 10, D5: a successor that came much later restored the instance, which was unhealthy and then expired.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_left_a_proxy_that_was_stopped_is_not_restored() {
    for waits_for_the_end in [true, false] {
        let mut mesh = Mesh::builder().nodes(2).start().await;
        let mut process = short_lived(&mesh, &[]).await;
        let mut open = Vec::new();
        for node in ["a", "b"] {
            reach(&mesh.channel(node), &["r1"]).await;
            open.push(OpenStream::start(mesh.channel(node)).await);
        }
        let mut old = mesh.give_proxy("a");
        old.signal("TERM");
        process.says("registering with its successor").await;
        for stream in &open {
            stream.asks_for_an_answer_in(Duration::from_secs(2)).await;
        }
        process.signal("TERM");
        for mut stream in open {
            stream.is_answered().await;
            stream.continues().await;
        }
        process.exit_cleanly().await;
        // What it says must not depend on its orderly end.
        match waits_for_the_end {
            true => old.exit_cleanly().await,
            false => old.kill().await,
        }
        mesh.start_proxy("a").await;
        let request = ListInstancesRequest::default();
        let known = mesh.agent("a").list_instances(request).await.unwrap();
        assert_eq!(known.into_inner().instances, []);
        mesh.control_has(&[]).await;
        let kinds = what_became_of_r1(&mesh).await;
        assert!(!kinds.contains(&"instance-expired".to_owned()), "{kinds:?}");
    }
}

/// Issue 10, D5: an idle proxy exits at once when it is stopped, and hears of no instance that ends later.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ended_without_a_proxy_is_not_restored() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    let mut process = short_lived(&mesh, &[]).await;
    reach(&mesh.channel("b"), &["r1"]).await;
    mesh.stop_proxy("a").await;
    process.stop_cleanly().await;
    mesh.start_proxy("a").await;
    let request = ListInstancesRequest::default();
    let known = mesh.agent("a").list_instances(request).await.unwrap();
    assert_eq!(known.into_inner().instances, []);
    mesh.control_has(&[]).await;
    let kinds = what_became_of_r1(&mesh).await;
    let gone = ["instance-joined", "instance-expired"];
    assert!(
        gone.starts_with(&kinds.iter().map(String::as_str).collect::<Vec<_>>()),
        "{kinds:?}"
    );
}

/// Issue 10, D5: the end of the old process is the end of its calls, and nothing waits for the stop timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_dies_while_it_drains_is_not_waited_for() {
    let mut mesh = Mesh::builder().start().await;
    let mut process = short_lived(&mesh, &["--stop-timeout", "600"]).await;
    reach(&mesh.channel("a"), &["r1"]).await;
    let stream = OpenStream::start(mesh.channel("a")).await;
    mesh.node("a").proxy().signal("TERM");
    process.says("registering with its successor").await;
    process.signal("TERM");
    process.says("leaving the mesh").await;
    mesh.kill_proxy("a").await;
    stream.fails().await;
    process.exit_cleanly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_do_not_end_are_waited_for_no_longer_than_the_stop_timeout() {
    let mesh = Mesh::builder().start().await;
    let mut process = short_lived(&mesh, &["--stop-timeout", "1"]).await;
    reach(&mesh.channel("a"), &["r1"]).await;
    let stream = OpenStream::start(mesh.channel("a")).await;
    process.signal("TERM");
    process.exit_cleanly().await;
    let output = process.output();
    assert!(
        output.contains("calls in flight after 1s (--stop-timeout): 1"),
        "{output}"
    );
    let failed = stream.fails().await;
    let why = ["instance r1", "was told to stop", "stop timeout"];
    failed.assert(Code::Unavailable, "DRAINING", &why);
}

/// Issue 10, D5: its own callers saw a connection that broke, without a reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_calls_of_a_draining_proxy_with_a_reason() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    reach(&mesh.channel("a"), &["a1"]).await;
    let stream = OpenStream::start(mesh.channel("a")).await;
    mesh.node("a").proxy().signal("TERM");
    refuses_connections(&mesh, "a").await;
    // One within the first second counts as the first signal.
    let mut fails = pin!(stream.fails());
    let failed = loop {
        tokio::select! {
            biased;
            failed = &mut fails => break failed,
            () = sleep(Duration::from_millis(200)) => mesh.node("a").proxy().signal("TERM"),
        }
    };
    failed.assert(
        Code::Unavailable,
        "DRAINING",
        &["node a", "second stop signal"],
    );
    mesh.proxy_exits("a").await;
}

/// Issue 10, D5 and E: it counted as lapsed for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_is_nothing_to_worry_about() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "b1").await;
    mesh.control_has(&["b1"]).await;
    let pid = mesh.node("b").pid();
    mesh.stop_proxy("b").await;
    let verdict = async |mesh: &Mesh| {
        let mesh = mesh.status().get_mesh(GetMeshRequest {}).await;
        let mesh = mesh.map_err(|status| status.to_string())?.into_inner();
        seen(
            mesh.verdict() == Verdict::Ok,
            format!("{:?}", mesh.problems),
        )
    };
    verdict(&mesh).await.expect("no problem at once");
    let request = WatchEventsRequest {
        kinds: vec!["node-left".into()],
        ..WatchEventsRequest::default()
    };
    let mut stream = mesh
        .status()
        .watch_events(request)
        .await
        .unwrap()
        .into_inner();
    let mut events = stream.message().await.unwrap().unwrap().events;
    let first = events.remove(0);
    let is_recorded = first.node == "b" && first.cause.contains("is stopping");
    assert!(is_recorded, "that process {pid} stops: {first:?}");
    // Without a successor its instances go, before its lease ends.
    mesh.control_has(&[]).await;
    while events.is_empty() {
        events = stream.message().await.unwrap().unwrap().events;
    }
    assert!(events[0].cause.contains("has not come back"), "{events:?}");
    verdict(&mesh).await.expect("no problem later");
}

/// Issue 10, D5: the failure named the instance behind it, which lived.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_other_nodes_proxy_dies_the_failure_names_that_proxy() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "b1").await;
    reach(&mesh.channel("a"), &["b1"]).await;
    let stream = OpenStream::start(mesh.channel("a")).await;
    let inbound = mesh.node("b").inbound;
    mesh.kill_proxy("b").await;
    let failed = stream.fails().await;
    let proxy = format!("the proxy of node b at {inbound}");
    failed.assert(Code::Unavailable, "CONNECTION_LOST", &[&proxy]);
    assert!(!failed.message.contains("b1"), "{failed:?}");
}

/// Issue 10, D5.
#[tokio::test(flavor = "multi_thread")]
async fn heddle_status_and_proxies_show_a_proxy_that_drains() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "a1").await;
    reach(&mesh.channel("a"), &["a1"]).await;
    let stream = OpenStream::start(mesh.channel("a")).await;
    mesh.node("a").proxy().signal("TERM");
    for command in ["status", "proxies"] {
        until("it shows that the proxy drains", async || {
            let start = Start::new("heddle", &binary("heddle")).args([command, "--control"]);
            let start = start.arg(format!("http://{}", mesh.grpc));
            let ran = heddle_tests::process::run(start).await;
            seen(ran.stdout.contains("DRAINING"), ran.all())
        })
        .await;
    }
    stream.continues().await;
    mesh.proxy_exits("a").await;
}
