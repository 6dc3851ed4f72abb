//! Stock gRPC clients, Python's and Go's, with `xds:///heddle-echo` and nothing but a bootstrap file: no proxy of ours
//! between them and the instances, only our control plane.

use std::collections::BTreeSet;

use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Process, Start};
use heddle_tests::tools::{go_peer, python, script};
use heddle_tests::until::until;
use serde_json::{Value, json};

/// The client and how many of its lines have been judged.
struct Client {
    process: Process,
}

impl Client {
    fn start(mesh: &Mesh, client: Start) -> Self {
        let bootstrap = mesh.path("bootstrap.json");
        let text = json!({
            "xds_servers": [{
                "server_uri": mesh.grpc.to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            "node": {"id": "stock"},
        });
        std::fs::write(&bootstrap, text.to_string()).unwrap();
        let protoset = mesh.path("heddle.protoset");
        std::fs::write(&protoset, heddle_proto::DESCRIPTOR_SET).unwrap();
        let process = client
            .arg("xds:///heddle-echo")
            .arg(protoset)
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            .spawn();
        Self { process }
    }

    /// Every call so far; panics at the first that failed.
    fn calls(&self) -> Vec<String> {
        let lines = self.process.stdout();
        let judge = |line: &String| {
            let call: Value = serde_json::from_str(line).unwrap();
            let instance = call["instance"].as_str();
            instance
                .unwrap_or_else(|| panic!("after {} calls: {line}", lines.len()))
                .to_owned()
        };
        lines.iter().map(judge).collect()
    }

    /// Waits until a run of calls begun from now on was answered by exactly these instances; no call may fail.
    async fn reaches(&self, instances: &[&str]) {
        let expected: BTreeSet<String> = instances.iter().map(|&id| id.to_owned()).collect();
        let what = format!("the client reaches exactly {expected:?}");
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
}

async fn follows_the_mesh_and_outlives_the_control_plane(client: Start) {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("a", "e2").await;
    let client = Client::start(&mesh, client);
    client.reaches(&["e1", "e2"]).await;

    mesh.echo("a", "e3").await;
    client.reaches(&["e1", "e2", "e3"]).await;

    mesh.stop_instance("a", "e2").await;
    client.reaches(&["e1", "e3"]).await;

    mesh.stop_control().await;
    client.reaches(&["e1", "e3"]).await;

    mesh.start_control().await;
    mesh.echo("a", "e4").await;
    client.reaches(&["e1", "e3", "e4"]).await;
    assert!(client.calls().len() > 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_follows_the_mesh_and_outlives_the_control_plane() {
    let client = Start::new("xds_client.py", &python()).arg(script("xds_client.py"));
    follows_the_mesh_and_outlives_the_control_plane(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_go_follows_the_mesh_and_outlives_the_control_plane() {
    let client = Start::new("xds-client", &go_peer("xds-client"));
    follows_the_mesh_and_outlives_the_control_plane(client).await;
}
