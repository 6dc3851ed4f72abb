//! Stock Envoy with both variants of ADS, and a listener whose routes, clusters and endpoints come from the control
//! plane.

use std::net::SocketAddr;
use std::time::Instant;

use heddle_h2::{Config, Connection, Event, Fields};
use heddle_tests::echo::{Failed, channel_as, echo, payload, reach};
use heddle_tests::envoy::{Envoy, bootstrap};
use heddle_tests::mesh::Mesh;
use heddle_tests::raw::{Client, frame};
use heddle_tests::temp::free_addr;
use heddle_tests::wait::TIMEOUT;
use http::HeaderMap;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::outage::{Caller, Loss, costs_no_call, mesh};

async fn follows_the_mesh_and_outlives_the_control_plane(api_type: &str) {
    let mesh = mesh().await;
    let envoy = Envoy::start(&mesh, &[mesh.grpc], api_type);
    let envoy = Caller::envoy(envoy, &["e0", "e1"]).await;
    costs_no_call(mesh, vec![envoy], &[Loss::Stopped, Loss::Killed]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_state_of_the_world_it_follows_the_mesh_and_outlives_the_control_plane() {
    follows_the_mesh_and_outlives_the_control_plane("GRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_deltas_it_follows_the_mesh_and_outlives_the_control_plane() {
    follows_the_mesh_and_outlives_the_control_plane("DELTA_GRPC").await;
}

/// With one entry in its node metadata Envoy gets a whole outbound listener from the control plane.
#[tokio::test(flavor = "multi_thread")]
async fn as_an_outbound_proxy_that_asks_for_its_listener() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    let (_envoy, listen) = outbound(&mesh);
    reach(&channel_as(listen, "heddle-echo"), &["e1"]).await;
    for proxy in [listen, mesh.node("a").outbound] {
        every_spelling_of_an_address_means_the_path(proxy).await;
    }
    let start_other = mesh.echo_start("a", "o1").args(["--service", "other"]);
    mesh.instance("a", "o1", start_other).await;
    reach(&channel_as(listen, "other.default.mesh"), &["o1"]).await;
    for proxy in [listen, mesh.node("a").outbound] {
        every_spelling_of_a_name_means_its_service(proxy).await;
    }
    // Same names, same outcome as through a Heddle proxy: a wrong name is not served.
    let mut wrong = echo(channel_as(listen, "heddle-ecko"));
    let failed = Failed::from(&wrong.unary(payload("x")).await.unwrap_err());
    assert_eq!(failed.code, tonic::Code::Unimplemented, "{failed:?}");
}

/// An Envoy that gets its outbound listener from the control plane, and where it listens.
fn outbound(mesh: &Mesh) -> (Envoy, SocketAddr) {
    let listen = free_addr();
    let mut bootstrap = bootstrap(&[mesh.grpc], listen, "DELTA_GRPC");
    bootstrap["node"]["metadata"] = json!({"heddle.outbound": listen.to_string()});
    bootstrap["static_resources"]["listeners"] = json!([]);
    bootstrap["dynamic_resources"]["lds_config"] =
        bootstrap["dynamic_resources"]["cds_config"].clone();
    (Envoy::with(mesh, &bootstrap, listen), listen)
}

const UNARY: &str = "/heddle.echo.v1.Echo/Unary";

/// Issue 10, C2: case, port and final dot of a name do not matter.
async fn every_spelling_of_a_name_means_its_service(proxy: SocketAddr) {
    for (authority, instance) in [
        ("heddle-echo", "e1"),
        ("HEDDLE-Echo", "e1"),
        ("heddle-echo.", "e1"),
        ("heddle-echo.:443", "e1"),
        ("other.default", "o1"),
        ("Other.Default.:80", "o1"),
        ("other.default.mesh.", "o1"),
        ("OTHER.default.MESH:15001", "o1"),
    ] {
        let client = Client::connect(proxy).await;
        let answer = client.call(authority, UNARY, &HeaderMap::new(), b"").await;
        let body = String::from_utf8_lossy(&answer.body);
        assert!(body.contains(instance), "{proxy} {authority}: {answer:?}");
    }
}

/// Issue 10, C2: nor do port, case and zone of an address.
async fn every_spelling_of_an_address_means_the_path(proxy: SocketAddr) {
    for authority in [
        "localhost",
        "LocalHost.:80",
        "localhost.",
        "127.0.0.1:15001",
        "127.0.0.1.",
        "[::1]:15001",
        "[FE80::1%25eth0]:15001",
        "[fe80::1%eth0]",
    ] {
        let status = status_of(proxy, authority).await;
        assert_eq!(status.as_deref(), Some("0"), "{proxy} {authority}");
    }
}

/// The `grpc-status` of a call with any authority, also one that client libraries refuse to send.
async fn status_of(proxy: SocketAddr, authority: &str) -> Option<String> {
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    let now = Instant::now();
    let mut client = Connection::client(Config::default(), now);
    let mut fields = Fields::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", UNARY),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    let stream = client.open(&fields, 1, false).unwrap();
    client.data(stream, &frame(b""), true).unwrap();
    let mut buffer = [0; 4096];
    loop {
        let output = client.output().to_vec();
        socket.write_all(&output).await.unwrap();
        client.advance(output.len());
        let read = tokio::time::timeout(TIMEOUT, socket.read(&mut buffer));
        let len = read.await.expect("an answer in time").unwrap();
        assert!(len > 0, "{authority}: the connection was closed");
        let mut bytes = &buffer[..len];
        while let Some(event) = client.recv(&mut bytes, &mut fields, now).unwrap() {
            match event {
                Event::Headers {
                    end_stream: true, ..
                } => {
                    let status = fields.get(b"grpc-status")?;
                    return Some(String::from_utf8_lossy(status).into_owned());
                }
                Event::Reset { .. } => return None,
                _ => {}
            }
        }
    }
}
