//! gRPC's interop server joins unchanged by a services file, and is called through the mesh by gRPC's Go client and by
//! stock grpcio. Every case that needs neither TLS nor a cloud credential, except Go's `pick_first_unary`, which needs
//! several servers with ids and fails against this server directly too.

use std::net::SocketAddr;
use std::time::Duration;

use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Process, Start, run_within};
use heddle_tests::raw;
use heddle_tests::sockets::peers_of;
use heddle_tests::temp::free_addr;
use heddle_tests::tools::{go_peer, interop_protoset, python, script};
use heddle_tests::wait::until;

const GO_CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
    "orca_per_rpc",
    "orca_oob",
];

const ORCA_CONFIG: &str = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;

/// A mesh with the interop server on one of its nodes, and calls from `caller` routed to it.
struct Joined {
    mesh: Mesh,
    server: SocketAddr,
    _process: Process,
    caller: SocketAddr,
}

async fn join(nodes: usize, server_node: &str, caller_node: &str) -> Joined {
    let server = free_addr();
    let process = Start::new("interop-server", &go_peer("interop-server"))
        .arg("-use_tls=false")
        .args(["-port", &server.port().to_string()])
        .spawn();
    let file = format!(
        "service: interop\n\
         protocol: grpc\n\
         protos: [grpc.testing.TestService, xds.service.orca.v3.OpenRcaService]\n\
         health: {{kind: tcp}}\n\
         instances:\n  - {{id: i1, address: \"{server}\"}}\n"
    );
    let mesh = Mesh::builder()
        .nodes(nodes)
        .services_file(server_node, "interop.yaml", &file)
        .start()
        .await;
    let caller = mesh.node(caller_node).outbound;
    until("calls reach the interop server", async || {
        let client = raw::Client::connect(caller).await;
        let path = "/grpc.testing.TestService/EmptyCall";
        let answer = client
            .call(&caller.to_string(), path, &http::HeaderMap::new(), b"")
            .await;
        if answer.last("grpc-status").as_deref() == Some("0") {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await;
    Joined {
        mesh,
        server,
        _process: process,
        caller,
    }
}

/// Runs every case of the Go client; gives those that failed.
async fn go_client(addr: SocketAddr) -> Vec<String> {
    let mut failed = Vec::new();
    for case in GO_CASES {
        let mut start = Start::new("interop-client", &go_peer("interop-client"))
            .arg("-use_tls=false")
            .args(["-server_host", &addr.ip().to_string()])
            .args(["-server_port", &addr.port().to_string()])
            // A slow machine must not fail the test.
            .args(["-soak_per_iteration_max_acceptable_latency_ms", "10000"])
            .args(["-soak_overall_timeout_seconds", "60"])
            .args(["-test_case", case]);
        if case.starts_with("orca") {
            start = start.args(["-service_config_json", ORCA_CONFIG]);
        }
        let ran = run_within(Duration::from_secs(90), start).await;
        if ran.code != Some(0) {
            failed.push(format!("{case}: {}", ran.all()));
        }
    }
    failed
}

/// Number of cases of the Python client: those of the Go client except `orca_per_rpc` (grpcio removes the report from the
/// trailers), and large calls from many threads at once.
const PYTHON_CASES: usize = GO_CASES.len();

async fn python_client(addr: SocketAddr) -> Vec<String> {
    let start = Start::new("interop_client.py", &python())
        .arg(script("interop_client.py"))
        .arg(addr.to_string())
        .arg(interop_protoset());
    let ran = run_within(Duration::from_secs(180), start).await;
    let cases = ran
        .stdout
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    if ran.code == Some(0) && cases == PYTHON_CASES {
        Vec::new()
    } else {
        vec![ran.all()]
    }
}

async fn every_case_passes(addr: SocketAddr) {
    let mut failed = go_client(addr).await;
    failed.extend(python_client(addr).await);
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_passes_on_one_node() {
    let joined = join(1, "a", "a").await;
    every_case_passes(joined.caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_passes_across_two_nodes_through_both_proxies() {
    let joined = join(2, "b", "a").await;
    every_case_passes(joined.caller).await;

    // The path of the calls, from the kernel.
    let (a, b) = (joined.mesh.node("a"), joined.mesh.node("b"));
    let (of_a, of_b) = (peers_of(a.pid()), peers_of(b.pid()));
    assert!(
        !of_a.contains(&joined.server),
        "the caller's proxy is connected to the instance"
    );
    assert!(
        of_a.contains(&b.inbound),
        "{of_a:?} lacks b's inbound {}",
        b.inbound
    );
    assert!(
        of_b.contains(&joined.server),
        "{of_b:?} lacks the instance {}",
        joined.server
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_over_a_unix_socket() {
    let dir = heddle_tests::temp::folder();
    let socket = format!("unix:{}", dir.path().join("out.sock").display());
    let mut mesh = Mesh::builder()
        .proxy_arg("--outbound")
        .proxy_arg(&socket)
        .start()
        .await;
    mesh.echo("a", "e1").await;
    heddle_tests::echo::reach(&mesh.channel("a"), &["e1"]).await;
    // Its authority is the socket's path, with %2F for each slash.
    let call = "import grpc, sys\n\
                call = grpc.insecure_channel(sys.argv[1]).unary_unary('/heddle.echo.v1.Echo/Unary')\n\
                print('answered', len(call(b'', timeout=20, wait_for_ready=True)))";
    let start = Start::new("grpcio over a socket", &python()).args(["-c", call, &socket]);
    let ran = run_within(Duration::from_secs(60), start).await;
    assert!(ran.stdout.contains("answered"), "{}", ran.all());
}
