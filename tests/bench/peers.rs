//! Starts what is measured: backends on one core, each proxy on the other, all on loopback and on free ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use heddle_tests::process::{Process, Start};
use heddle_tests::{temp, tools};
use tempfile::TempDir;

use crate::call::PROTO_SERVICE;
use crate::options::Peer;

pub(crate) const PROXY_CORE: &str = "0";
pub(crate) const LOAD_CORE: &str = "1";

/// A running peer; it ends when this is dropped.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    /// The address that the load generator calls.
    pub(crate) address: SocketAddr,
    /// `None` for direct calls to the backends.
    pub(crate) process: Option<Process>,
    _folder: Option<TempDir>,
}

/// Starts the backends. Returns their process and addresses.
pub(crate) async fn backends() -> anyhow::Result<(Process, Vec<SocketAddr>)> {
    let mut process = pinned("bench-backend", LOAD_CORE, &std::env::current_exe()?)
        .arg("backend")
        .spawn();
    let ready = process.ready().await;
    Ok((
        process,
        vec![ready.get("one").parse()?, ready.get("two").parse()?],
    ))
}

pub(crate) async fn start(peer: Peer, backends: &[SocketAddr]) -> anyhow::Result<Running> {
    match peer {
        Peer::Direct => Ok(Running {
            peer,
            address: backends[0],
            process: None,
            _folder: None,
        }),
        Peer::Tcp => tcp(backends).await,
        Peer::Heddle => heddle(&[], backends).await,
        Peer::Envoy => envoy(backends).await,
    }
}

async fn tcp(backends: &[SocketAddr]) -> anyhow::Result<Running> {
    let start = pinned("bench-relay", PROXY_CORE, &std::env::current_exe()?).arg("relay");
    let mut process = start.args(backends.iter().map(ToString::to_string)).spawn();
    let address = process.ready().await.get("listen").parse()?;
    Ok(Running {
        peer: Peer::Tcp,
        address,
        process: Some(process),
        _folder: None,
    })
}

/// heddle-proxy with one worker, its instances from a file and no control plane; `under` is a tool that runs it, with
/// its arguments.
pub(crate) async fn heddle(under: &[String], backends: &[SocketAddr]) -> anyhow::Result<Running> {
    let folder = temp::folder();
    let services = folder.path().join("services");
    std::fs::create_dir(&services)?;
    std::fs::write(services.join("bench-echo.yaml"), services_file(backends))?;
    let program = beside("heddle-proxy")?;
    let start = match under.split_first() {
        None => pinned("heddle-proxy", PROXY_CORE, &program),
        Some((tool, words)) => pinned("heddle-proxy", PROXY_CORE, Path::new(tool))
            .args(words)
            .arg(program),
    };
    let any = "127.0.0.1:0";
    let start = start
        .args(["--node", "bench", "--workers", "1"])
        // Another mesh, for instance a demo, may run on this machine: the default would join it.
        .args(["--control", "none"])
        .args([
            "--outbound",
            any,
            "--inbound",
            any,
            "--agent",
            any,
            "--admin",
            any,
        ])
        .arg("--services-dir")
        .arg(&services)
        .arg("--state-dir")
        .arg(folder.path().join("state"));
    let mut process = start.spawn();
    let address = process.ready().await.get("outbound").parse()?;
    Ok(Running {
        peer: Peer::Heddle,
        address,
        process: Some(process),
        _folder: Some(folder),
    })
}

fn services_file(backends: &[SocketAddr]) -> String {
    let mut text = format!(
        "service: bench-echo\nprotocol: grpc\nprotos: [{PROTO_SERVICE}]\nhealth: {{kind: none}}\ninstances:\n"
    );
    for (at, backend) in backends.iter().enumerate() {
        text += &format!("  - {{id: e{at}, address: \"{backend}\"}}\n");
    }
    text
}

/// Stock Envoy: one worker, no access log, one route to the backends with round robin.
async fn envoy(backends: &[SocketAddr]) -> anyhow::Result<Running> {
    let folder = temp::folder();
    let address = temp::free_addr();
    let file = folder.path().join("envoy.yaml");
    std::fs::write(&file, envoy_file(address, backends))?;
    let start = pinned("envoy", PROXY_CORE, &tools::envoy())
        .arg("-c")
        .arg(&file);
    let start = start.args(["--concurrency", "1", "--disable-hot-restart", "-l", "info"]);
    let mut process = start.spawn();
    process.says("starting main dispatch loop").await;
    Ok(Running {
        peer: Peer::Envoy,
        address,
        process: Some(process),
        _folder: Some(folder),
    })
}

fn envoy_file(listen: SocketAddr, backends: &[SocketAddr]) -> String {
    let socket = |address: SocketAddr| {
        format!(
            "{{socket_address: {{address: {}, port_value: {}}}}}",
            address.ip(),
            address.port()
        )
    };
    let endpoints: Vec<String> = backends
        .iter()
        .map(|backend| format!("{{endpoint: {{address: {}}}}}", socket(*backend)))
        .collect();
    let connection_manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let upstream = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    format!(
        r#"static_resources:
  listeners:
  - address: {listen}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {connection_manager}
          stat_prefix: bench
          codec_type: HTTP2
          route_config:
            virtual_hosts:
            - {{name: bench, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: bench, timeout: 0s}}}}]}}
          http_filters:
          - {{name: router, typed_config: {{"@type": {router}}}}}
  clusters:
  - name: bench
    type: STATIC
    lb_policy: ROUND_ROBIN
    load_assignment: {{cluster_name: bench, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": {upstream}
        explicit_http_config: {{http2_protocol_options: {{}}}}
"#,
        listen = socket(listen),
        endpoints = endpoints.join(", "),
    )
}

pub(crate) fn pinned(name: &str, core: &str, program: &Path) -> Start {
    Start::new(name, Path::new("taskset"))
        .args(["-c", core])
        .arg(program)
}

/// A release binary in the same folder as this one.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here
        .parent()
        .context("this program lies in a folder")?
        .join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --release --workspace --bins` first",
        path.display()
    );
    Ok(path)
}
