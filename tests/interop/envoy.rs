//! Stock Envoy, by ADS in both protocols, with a listener of its own whose routes, clusters and endpoints come from our
//! control plane: same resources, a stranger's proxy.

use heddle_tests::echo::{Failed, channel, channel_as, echo, payload, reach};
use heddle_tests::envoy::{Envoy, bootstrap};
use heddle_tests::ledger::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::place::free_addr;
use serde_json::json;

async fn envoy_follows_the_mesh(api_type: &str) {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("a", "e2").await;
    let envoy = Envoy::start(&mesh, &[mesh.grpc], api_type);
    let calls = channel(envoy.listen);
    reach(&calls, &["e1", "e2"]).await;

    // From here on every call is in the book, and none may fail.
    let load = Load::start(&Plan::new(Kind::Unsafe, &[envoy.listen]));
    load.more(50).await;

    mesh.echo("a", "e3").await;
    reach(&calls, &["e1", "e2", "e3"]).await;

    mesh.stop_instance("a", "e2").await;
    reach(&calls, &["e1", "e3"]).await;
    load.more(50).await;

    mesh.stop_control().await;
    load.more(50).await;
    reach(&calls, &["e1", "e3"]).await;

    mesh.start_control().await;
    mesh.echo("a", "e4").await;
    reach(&calls, &["e1", "e3", "e4"]).await;
    load.more(50).await;
    load.finish().await.assert_none_failed(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_state_of_the_world() {
    envoy_follows_the_mesh("GRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_deltas() {
    envoy_follows_the_mesh("DELTA_GRPC").await;
}

/// With one word of node metadata Envoy gets a whole outbound listener from the control plane.
#[tokio::test(flavor = "multi_thread")]
async fn as_an_outbound_proxy_that_asks_for_its_listener() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    let start_other = mesh.echo_start("a", "o1").args(["--service", "other"]);
    mesh.instance("a", "o1", start_other).await;
    let listen = free_addr();
    let mut bootstrap = bootstrap(&[mesh.grpc], listen, "DELTA_GRPC");
    bootstrap["node"]["metadata"] = json!({"heddle.outbound": listen.to_string()});
    bootstrap["static_resources"]["listeners"] = json!([]);
    bootstrap["dynamic_resources"]["lds_config"] =
        bootstrap["dynamic_resources"]["cds_config"].clone();
    let _envoy = Envoy::with(&mesh, &bootstrap, listen);
    reach(&channel_as(listen, "heddle-echo"), &["e1"]).await;
    reach(&channel_as(listen, "other.default.mesh"), &["o1"]).await;
    // Same names, same outcome as through a proxy of ours: a wrong one is not served by anyone.
    let mut wrong = echo(channel_as(listen, "heddle-ecko"));
    let failed = Failed::from(&wrong.unary(payload("x")).await.unwrap_err());
    assert_eq!(failed.code, tonic::Code::Unimplemented, "{failed:?}");
}
