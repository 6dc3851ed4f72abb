//! Endpoints on demand: fetched at the first call to a service, dropped after a long time without calls, and available
//! after a restart without a control plane. The control plane is real, and frozen where it must not answer.

use std::time::{Duration, Instant};

use heddle_proto::status::v1::ListEdgesRequest;
use heddle_tests::echo::{Failed, call, echo, payload};
use heddle_tests::http_get::{get, json};
use heddle_tests::mesh::Mesh;
use heddle_tests::wait::{seen, until};
use tonic::{Code, Request};

const SERVICE: &str = "heddle-echo.default";

/// Whether node a is subscribed to the service's endpoints, and how many there are.
async fn known(mesh: &Mesh) -> Result<(bool, usize), String> {
    let config = json(mesh.node("a").admin, "/config").await?;
    let service = &config["routing_table"]["services"][SERVICE];
    let held = service["held"].as_bool().ok_or("not known by name")?;
    Ok((held, service["endpoints"].as_array().map_or(0, Vec::len)))
}

async fn until_known(mesh: &Mesh, expect: (bool, usize)) {
    until("what a knows of the service", async || {
        let known = known(mesh).await?;
        seen(known == expect, format!("{known:?}"))
    })
    .await;
}

async fn metric(mesh: &Mesh, line: &str) -> Option<u64> {
    let (_, text) = get(mesh.node("a").admin, "/metrics").await.ok()?;
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    found.and_then(|value| value.trim().parse().ok())
}

/// Two nodes and an instance on b, of which a knows only the name.
async fn unused(args: &[&str]) -> Mesh {
    let mut builder = Mesh::builder().nodes(2);
    for arg in args {
        builder = builder.proxy_arg(arg);
    }
    let mut mesh = builder.start().await;
    mesh.echo("b", "e1").await;
    mesh.control_has(&["e1"]).await;
    until_known(&mesh, (false, 0)).await;
    mesh
}

/// Longer than a busy machine takes, and than the five seconds for which a proxy waits.
const DEADLINE: Duration = Duration::from_secs(30);

async fn call_within(mesh: &Mesh, deadline: Duration) -> Result<String, Failed> {
    let mut request = Request::new(payload("x"));
    request.set_timeout(deadline);
    let answer = echo(mesh.channel("a")).unary(request).await;
    answer
        .map(|answer| answer.into_inner().instance)
        .map_err(|status| Failed::from(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_to_a_service_fetches_its_endpoints_within_its_deadline() {
    let mesh = unused(&[]).await;
    let instance = call_within(&mesh, DEADLINE).await.unwrap();
    assert_eq!(instance, "e1");
    until_known(&mesh, (true, 1)).await;
    let ok = metric(&mesh, "heddle_xds_fetches_total{result=\"ok\"}").await;
    assert_eq!(ok, Some(1));
    assert_eq!(metric(&mesh, "heddle_xds_services_held").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_control_plane_is_frozen_first_calls_are_not_ready_after_5_s() {
    let mesh = unused(&[]).await;
    mesh.control().signal("STOP");
    // Long, so that only the proxy ends the wait.
    let began = Instant::now();
    let failed = call_within(&mesh, DEADLINE).await.unwrap_err();
    let took = began.elapsed();
    failed.assert(
        Code::Unavailable,
        "NOT_READY",
        &[SERVICE, "control plane", "node a"],
    );
    // A proxy reads its clock once per turn, maybe shortly before the call arrived.
    assert!(took >= Duration::from_secs(4), "{took:?}");
    mesh.control().signal("CONT");
    until("calls go through again", async || {
        let answer = call_within(&mesh, DEADLINE).await;
        answer.map_err(|failed| format!("{failed:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_calls_wait_for_the_answer_and_all_succeed() {
    const CALLS: u64 = 1000;
    let mesh = unused(&["--workers=1"]).await;
    mesh.control().signal("STOP");
    let client = echo(mesh.channel("a"));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let mut client = client.clone();
        calls.spawn(async move { client.unary(payload("x")).await });
    }
    until("all wait", async || {
        let waiting = metric(&mesh, "heddle_waiting_calls ").await;
        seen(waiting == Some(CALLS), format!("{waiting:?}"))
    })
    .await;
    mesh.control().signal("CONT");
    while let Some(answer) = calls.join_next().await {
        let answer = answer.unwrap().map_err(|status| Failed::from(&status));
        assert_eq!(answer.unwrap().into_inner().instance, "e1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_calls_is_dropped_and_fetched_again() {
    let mesh = unused(&["--service-idle=1s"]).await;
    call_within(&mesh, DEADLINE).await.unwrap();
    until("it is dropped, and its counters go too", async || {
        let (known, held) = (
            known(&mesh).await?,
            metric(&mesh, "heddle_xds_services_held").await,
        );
        let (_, text) = get(mesh.node("a").admin, "/metrics").await?;
        let calls = text.lines().filter(|l| l.starts_with("heddle_calls_total"));
        let left: Vec<_> = calls.filter(|l| l.contains(SERVICE)).collect();
        let gone = known == (false, 0) && held == Some(0) && left.is_empty();
        seen(gone, format!("{known:?}, {held:?}: {}", left.join("\n")))
    })
    .await;
    call_within(&mesh, DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_use_is_served_after_a_restart_with_no_control_plane() {
    let mut mesh = unused(&[]).await;
    call_within(&mesh, DEADLINE).await.unwrap();
    // The state dir has more than the name: the inbound address of b.
    let inbound = mesh.node("b").inbound.to_string();
    mesh.saved("a", "xds", &inbound).await;
    mesh.kill_control().await;
    mesh.kill_proxy("a").await;
    mesh.start_proxy("a").await;
    let answer = call(mesh.node("a").outbound, payload("x")).await.unwrap();
    assert_eq!(answer.instance, "e1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_prefetched_is_held_before_anybody_calls() {
    for arg in ["--prefetch=all", "--prefetch=heddle-echo"] {
        let mut mesh = Mesh::builder().nodes(2).proxy_arg(arg).start().await;
        mesh.echo("b", "e1").await;
        until_known(&mesh, (true, 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_learns_who_calls_whom() {
    let mesh = unused(&[]).await;
    for _ in 0..20 {
        call_within(&mesh, DEADLINE).await.unwrap();
    }
    until(
        "an edge from a to the service, and none from b",
        async || {
            let answer = mesh.status().list_edges(ListEdgesRequest::default()).await;
            let edges = answer
                .map_err(|status| status.to_string())?
                .into_inner()
                .edges;
            let [edge] = edges.as_slice() else {
                return Err(format!("{edges:?}"));
            };
            let names = (
                edge.caller.as_str(),
                edge.role.as_str(),
                edge.service.as_str(),
            );
            let fits = names == ("a", "proxy", SERVICE)
                && edge.requests_per_second > 0.0
                && edge.success_ratio > 0.999
                && edge.latency_ms > 0.0;
            seen(fits, format!("{edge:?}"))
        },
    )
    .await;
}
