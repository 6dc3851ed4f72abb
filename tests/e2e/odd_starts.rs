//! Processes that are stopped before they are ready, and addresses of another family.

use heddle_proto::status::v1::{GetMeshRequest, mesh_status_client::MeshStatusClient};
use heddle_tests::process::Start;
use heddle_tests::temp::folder;
use heddle_tests::tools::binary;
use heddle_tests::wait::{seen, until};

fn proxy(control: &str) -> Start {
    Start::new("heddle-proxy", &binary("heddle-proxy"))
        .args(["--node", "a", "--control", control])
        .args(["--outbound", "127.0.0.1:0", "--agent", "127.0.0.1:0"])
        .args(["--admin", "127.0.0.1:0", "--dns", "127.0.0.1:0"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_stopped_before_it_is_ready_exits_with_0() {
    // Nothing answers there, so outbound waits for two seconds.
    for signal in ["TERM", "INT"] {
        let mut process = proxy("http://127.0.0.1:1")
            .args(["--inbound", "127.0.0.1:0"])
            .spawn();
        process.says("cannot reach the control plane").await;
        process.signal(signal);
        process.exit_cleanly().await;
        assert!(process.stdout().is_empty(), "{}", process.output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inbound_on_every_address_is_advertised_in_the_family_of_the_control_plane() {
    let dir = folder();
    for (host, store) in [("[::1]", "six"), ("127.0.0.1", "four")] {
        let store = format!("embedded:{}", dir.path().join(store).display());
        let mut control = Start::new("heddle-control", &binary("heddle-control"))
            .args(["--listen", &format!("{host}:0"), "--http", "127.0.0.1:0"])
            .args(["--store", &store])
            .spawn();
        let there = format!("http://{}", control.ready().await.get("grpc"));
        let mut process = proxy(&there)
            .args(["--inbound", "[::]:0", "--insecure-inbound"])
            .spawn();
        let port = process.ready().await.get("inbound").replace("[::]", "");
        let channel = tonic::transport::Endpoint::from_shared(there).unwrap();
        let mut status = MeshStatusClient::new(channel.connect_lazy());
        until("the node's inbound in status", async || {
            let mesh = status.get_mesh(GetMeshRequest {}).await;
            let mesh = mesh.map_err(|why| why.to_string())?.into_inner();
            let advertised: Vec<_> = mesh.nodes.iter().map(|node| &node.advertise).collect();
            seen(
                advertised == [&format!("{host}{port}")],
                format!("{advertised:?}"),
            )
        })
        .await;
        process.stop_cleanly().await;
        control.stop_cleanly().await;
    }
}
