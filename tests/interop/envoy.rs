//! Stock Envoy, by ADS in both protocols, with a listener of its own whose routes, clusters and endpoints come from our
//! control plane: same resources, a stranger's proxy.

use heddle_tests::echo::{Failed, channel_as, echo, payload, reach};
use heddle_tests::envoy::{Envoy, bootstrap};
use heddle_tests::mesh::Mesh;
use heddle_tests::place::free_addr;
use serde_json::json;

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
