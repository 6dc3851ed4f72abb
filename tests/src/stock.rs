//! Stock gRPC clients that find `heddle-echo` by xDS (grpcio, grpc-go, grpc-js) and call it without a pause worth the
//! name: no proxy of ours between them and the instances. In comes one control-plane address, as their bootstrap files
//! have it; out comes every call with who answered or how it failed. No call is repeated here and none is forgiven.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::process::{Process, Start};
use crate::tools::{go_peer, node_modules, python, script, system};
use crate::wait::{seen, until};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Grpcio,
    GrpcGo,
    GrpcJs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Grpcio, Self::GrpcGo, Self::GrpcJs];

    fn name(self) -> &'static str {
        match self {
            Self::Grpcio => "grpcio",
            Self::GrpcGo => "grpc-go",
            Self::GrpcJs => "grpc-js",
        }
    }

    fn start(self) -> Start {
        match self {
            Self::Grpcio => Start::new("grpcio", &python()).arg(script("xds_client.py")),
            Self::GrpcGo => Start::new("grpc-go", &go_peer("xds-client")),
            Self::GrpcJs => Start::new("grpc-js", &system("node", "nodejs"))
                .arg(script("node/xds_client.js"))
                .env("NODE_PATH", node_modules()),
        }
    }
}

/// One that calls `xds:///heddle-echo` until it is dropped.
pub struct Client {
    process: Process,
}

impl Client {
    /// `control` is the one address that it has of the control plane: for several replicas a [`crate::load_balancer::LoadBalancer`].
    /// gRPC falls back to a second one of its list only for what it has never had (gRFC A71), grpc-js not at all.
    pub fn start(kind: Kind, mesh: &Mesh, control: SocketAddr) -> Self {
        let name = kind.name();
        let bootstrap = mesh.path(&format!("{name}.json"));
        let text = json!({
            "xds_servers": [{
                "server_uri": control.to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            // grpc-js refuses a node without a locality.
            "node": {"id": format!("stock-{name}"), "locality": {}},
        });
        std::fs::write(&bootstrap, text.to_string()).unwrap();
        // Its own file: another client that starts would write it anew while this one reads.
        let protoset = mesh.path(&format!("{name}.protoset"));
        std::fs::write(&protoset, heddle_proto::DESCRIPTOR_SET).unwrap();
        let start = kind.start().arg("xds:///heddle-echo").arg(protoset);
        let process = start.env("GRPC_XDS_BOOTSTRAP", bootstrap).spawn();
        Self { process }
    }

    /// By which the control plane knows it.
    pub fn node_id(&self) -> String {
        format!("stock-{}", self.process.name())
    }

    /// Who answered each call so far; panics at the first that failed.
    pub fn calls(&self) -> Vec<String> {
        let lines = self.process.stdout();
        let outcome = |line: &String| {
            let call: Value = serde_json::from_str(line).unwrap_or_default();
            let instance = call["instance"].as_str();
            let name = self.process.name();
            let instance =
                instance.unwrap_or_else(|| panic!("{name} after {} calls: {line}", lines.len()));
            instance.to_owned()
        };
        lines.iter().map(outcome).collect()
    }

    /// Waits until a run of calls begun from now on was answered by exactly these instances; no call may fail.
    pub async fn reaches(&self, instances: &[&str]) {
        let expected: BTreeSet<String> = instances.iter().map(|&id| id.to_owned()).collect();
        let what = format!("{} reaches exactly {expected:?}", self.process.name());
        let mut from = self.calls().len();
        until(&what, async || {
            let calls = self.calls();
            let run: BTreeSet<String> = calls[from..].iter().cloned().collect();
            // Round robin: a run of a few rounds shows every instance.
            let enough = calls.len() - from >= 4 * expected.len();
            if enough && run == expected {
                return Ok(());
            }
            if enough {
                from = calls.len();
            }
            Err(format!("{run:?}; {}", self.process.stderr().join("\n")))
        })
        .await;
    }

    /// Waits until so many further calls have been answered; none may fail.
    pub async fn more(&self, count: usize) {
        let from = self.calls().len();
        let what = format!("{} goes on calling", self.process.name());
        until(&what, async || {
            let now = self.calls().len() - from;
            seen(now >= count, format!("{now} of {count} calls"))
        })
        .await;
    }
}
