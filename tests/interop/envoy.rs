//! Stock Envoy, by ADS in both protocols, with a listener of its own whose routes, clusters and endpoints come from our
//! control plane: same resources, a stranger's proxy.

use std::net::SocketAddr;

use heddle_tests::echo::{Failed, channel, channel_as, echo, payload, reach};
use heddle_tests::ledger::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::place::free_addr;
use heddle_tests::process::{Process, Start};
use heddle_tests::tools::envoy;
use serde_json::{Value, json};

fn address(addr: SocketAddr) -> Value {
    json!({"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}})
}

/// One ADS stream to `control`; routes by RDS, clusters by CDS (wildcard), endpoints by EDS.
fn bootstrap(control: SocketAddr, listen: SocketAddr, api_type: &str) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let http2 = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "rds": {"route_config_name": "heddle-echo.default", "config_source": ads},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    json!({
        "node": {"id": "envoy", "cluster": "test"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {
                    "cluster_name": "control",
                    "retry_policy": {"retry_back_off": {"base_interval": "0.25s", "max_interval": "2s"}},
                }}],
            },
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [{
                "name": "control",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": http2,
                "load_assignment": {
                    "cluster_name": "control",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(control)}}]}],
                },
            }],
            "listeners": [{
                "name": "echo",
                "address": address(listen),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }]}],
            }],
        },
    })
}

fn start(mesh: &Mesh, bootstrap: &Value) -> Process {
    let file = mesh.path("envoy.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    Start::new("envoy", &envoy())
        .arg("-c")
        .arg(file)
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "-l",
            "warning",
        ])
        .spawn()
}

async fn envoy_follows_the_mesh(api_type: &str) {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("a", "e2").await;
    let listen = free_addr();
    let _envoy = start(&mesh, &bootstrap(mesh.grpc, listen, api_type));
    let calls = channel(listen);
    reach(&calls, &["e1", "e2"]).await;

    // From here on every call is in the book, and none may fail.
    let load = Load::start(&Plan::new(Kind::Unsafe, &[listen]));
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
    let mut bootstrap = bootstrap(mesh.grpc, listen, "DELTA_GRPC");
    bootstrap["node"]["metadata"] = json!({"heddle.outbound": listen.to_string()});
    bootstrap["static_resources"]["listeners"] = json!([]);
    bootstrap["dynamic_resources"]["lds_config"] =
        bootstrap["dynamic_resources"]["cds_config"].clone();
    let _envoy = start(&mesh, &bootstrap);
    reach(&channel_as(listen, "heddle-echo"), &["e1"]).await;
    reach(&channel_as(listen, "other.default.mesh"), &["o1"]).await;
    // Same names, same outcome as through a proxy of ours: a wrong one is not served by anyone.
    let mut wrong = echo(channel_as(listen, "heddle-ecko"));
    let failed = Failed::from(&wrong.unary(payload("x")).await.unwrap_err());
    assert_eq!(failed.code, tonic::Code::Unimplemented, "{failed:?}");
}
