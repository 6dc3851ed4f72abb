//! The mesh as grpcurl sees it, with no proto file at hand: every node lists, describes and calls what runs anywhere;
//! the control plane answers for its own APIs.

use std::net::SocketAddr;

use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Ran, Start, run};
use heddle_tests::tools::go_peer;
use heddle_tests::until::{seen, until};
use serde_json::Value;

async fn grpcurl(addr: SocketAddr, before: &[&str], after: &[&str]) -> Ran {
    let start = Start::new("grpcurl", &go_peer("grpcurl"))
        .args(["-plaintext", "-max-time", "20"])
        .args(before)
        .arg(addr.to_string())
        .args(after);
    run(start).await
}

/// Output of a run that succeeds, in the end.
async fn answers(addr: SocketAddr, before: &[&str], after: &[&str]) -> String {
    let what = format!("grpcurl {before:?} {addr} {after:?}");
    until(&what, async || {
        let ran = grpcurl(addr, before, after).await;
        seen(ran.code == Some(0), ran.all()).map(|()| ran.stdout)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_lists_describes_and_calls_the_whole_mesh() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    for node in ["a", "b"] {
        let addr = mesh.node(node).outbound;
        until("the echo service is listed", async || {
            let list = answers(addr, &[], &["list"]).await;
            let all = ["heddle.echo.v1.Echo", "grpc.health.v1.Health"];
            seen(
                all.iter()
                    .all(|name| list.lines().any(|line| line == *name)),
                list,
            )
        })
        .await;

        let text = answers(addr, &[], &["describe", "heddle.echo.v1.Echo"]).await;
        assert!(
            text.contains("rpc Unary ( .heddle.echo.v1.EchoRequest )"),
            "{text}"
        );
        let text = answers(addr, &[], &["describe", "heddle.echo.v1.EchoRequest"]).await;
        assert!(text.contains("uint32 delay_ms"), "{text}");

        let request = r#"{"payload":"aGVsbG8="}"#;
        let text = answers(addr, &["-d", request], &["heddle.echo.v1.Echo/Unary"]).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["payload"], "aGVsbG8=");
        assert_eq!(
            (&answer["instance"], &answer["node"]),
            (&"e1".into(), &"b".into())
        );

        let text = answers(
            addr,
            &["-d", r#"{"service":"heddle-echo"}"#],
            &["grpc.health.v1.Health/Check"],
        )
        .await;
        assert!(text.contains("SERVING"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_tells_the_state_of_the_mesh() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("b", "e2").await;
    let list = answers(mesh.grpc, &[], &["list"]).await;
    for name in [
        "heddle.status.v1.MeshStatus",
        "heddle.registry.v1.Registry",
        "heddle.control.v1.NodeSession",
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "grpc.health.v1.Health",
    ] {
        assert!(
            list.lines().any(|line| line == name),
            "{name} is not in\n{list}"
        );
    }
    until("both instances are healthy", async || {
        let text = answers(mesh.grpc, &[], &["heddle.status.v1.MeshStatus/GetMesh"]).await;
        let state: Value = serde_json::from_str(&text).unwrap();
        let nodes = state["nodes"].as_array().map_or(0, Vec::len);
        seen(nodes == 2 && state["healthyInstances"] == 2, text)
    })
    .await;
    let request = r#"{"name":"heddle-echo"}"#;
    let method = "heddle.status.v1.MeshStatus/GetService";
    let text = answers(mesh.grpc, &["-d", request], &[method]).await;
    let service: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(service["name"], "heddle-echo.default");
    assert_eq!(service["endpoints"][0]["id"], "e1");
    assert_eq!(service["endpoints"][1]["node"], "b");

    until(
        "both proxies have acknowledged what they were sent",
        async || {
            let text = answers(mesh.grpc, &[], &["heddle.status.v1.MeshStatus/ListProxies"]).await;
            let state: Value = serde_json::from_str(&text).unwrap();
            let proxies = state["proxies"].as_array().cloned().unwrap_or_default();
            let settled = proxies.iter().filter(|proxy| {
                let types = proxy["types"].as_array().cloned().unwrap_or_default();
                proxy["role"] == "proxy"
                    && !types.is_empty()
                    && types.iter().all(|kind| {
                        kind["inFlight"] != true
                            && kind["rejectedReason"].is_null()
                            && kind["acknowledgedVersion"] == kind["sentVersion"]
                    })
            });
            seen(settled.count() == 2, text)
        },
    )
    .await;

    let request = r#"{"name":"heddle-ecko"}"#;
    let ran = grpcurl(mesh.grpc, &["-d", request], &[method]).await;
    assert!(ran.stderr.contains("NotFound"), "{}", ran.all());
    assert!(
        ran.stderr.contains("heddle-echo"),
        "no nearest name in {}",
        ran.all()
    );
}
