//! Stock Envoy as an xDS client: one ADS stream to any of several replicas, clusters by CDS (wildcard), endpoints by EDS,
//! routes by RDS into its own listener. Takes the addresses of the replicas and gives an address to call.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::process::{Process, Start};
use crate::temp::free_addr;
use crate::tools::envoy;

/// One that runs until it is dropped.
pub struct Envoy {
    pub listen: SocketAddr,
    _process: Process,
}

impl Envoy {
    /// `api_type` is `GRPC` (state of the world) or `DELTA_GRPC`.
    pub fn start(mesh: &Mesh, control: &[SocketAddr], api_type: &str) -> Self {
        let listen = free_addr();
        Self::with(mesh, &bootstrap(control, listen, api_type), listen)
    }

    /// With a bootstrap of the test's own.
    pub fn with(mesh: &Mesh, bootstrap: &Value, listen: SocketAddr) -> Self {
        let file = mesh.path(&format!("envoy-{}.json", listen.port()));
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let _process = Start::new("envoy", &envoy())
            .arg("-c")
            .arg(file)
            .args(["--concurrency", "1", "--disable-hot-restart"])
            .args(["-l", "warning"])
            .spawn();
        Self { listen, _process }
    }

    /// By which the control plane knows it, with the usual bootstrap.
    pub fn node_id(&self) -> String {
        node_id(self.listen)
    }
}

fn node_id(listen: SocketAddr) -> String {
    format!("envoy-{}", listen.port())
}

fn address(addr: SocketAddr) -> Value {
    json!({"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}})
}

/// What an operator would write for these replicas: the back-off is the one that `docs/xds.md` advises, the keep-alive a
/// quicker one.
pub fn bootstrap(control: &[SocketAddr], listen: SocketAddr, api_type: &str) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let http2 = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {
                "connection_keepalive": {"interval": "2s", "timeout": "2s"},
            }},
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
    let replicas: Vec<_> = control
        .iter()
        .map(|&replica| json!({"endpoint": {"address": address(replica)}}))
        .collect();
    json!({
        "node": {"id": node_id(listen), "cluster": "test"},
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
                    "endpoints": [{"lb_endpoints": replicas}],
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
