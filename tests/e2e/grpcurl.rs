//! grpcurl without a proto file: every node lists, describes and calls all services of the mesh; the control plane
//! answers for its own APIs.

use std::net::SocketAddr;

use heddle_tests::echo::reach;
use heddle_tests::etcd::Etcd;
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Ran, Start, run};
use heddle_tests::stock::{Client, Kind};
use heddle_tests::tools::go_peer;
use heddle_tests::wait::{seen, until};
use serde_json::Value;

async fn grpcurl(addr: SocketAddr, before: &[&str], after: &[&str]) -> Ran {
    let start = Start::new("grpcurl", &go_peer("grpcurl"))
        .args(["-plaintext", "-max-time", "20"])
        .args(before)
        .arg(addr.to_string())
        .args(after);
    run(start).await
}

/// The output of the first run that succeeds.
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
async fn the_control_plane_reports_the_state_of_the_mesh() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("b", "e2").await;
    let list = answers(mesh.grpc, &[], &["list"]).await;
    assert_eq!(
        list.lines().collect::<Vec<_>>(),
        [
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            "envoy.service.load_stats.v3.LoadReportingService",
            "envoy.service.status.v3.ClientStatusDiscoveryService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "heddle.control.v1.NodeSession",
            "heddle.control.v1.Replica",
            "heddle.registry.v1.Registry",
            "heddle.status.v1.MeshStatus",
        ],
        "everything that is served, and nothing else"
    );
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

const CLIENT_STATUS: &str = "envoy.service.status.v3.ClientStatusDiscoveryService";

/// A client in a CSDS response, and its resources: type, name, client status.
type Listing = (String, Vec<[String; 3]>);

/// Each client in the answer's order.
fn clients(answer: &str) -> Result<Vec<Listing>, String> {
    let answer: Value = serde_json::from_str(answer).map_err(|error| error.to_string())?;
    let configs = answer["config"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let clients = configs.iter().map(|client| {
        let held = client["genericXdsConfigs"].as_array().cloned();
        let held = held.unwrap_or_default();
        let held = held.iter().map(|each| {
            let kind = text(&each["typeUrl"]);
            let kind = kind.rsplit('.').next().unwrap_or_default();
            [
                kind.to_owned(),
                text(&each["name"]),
                text(&each["clientStatus"]),
            ]
        });
        (text(&client["node"]["id"]), held.collect())
    });
    Ok(clients.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_reports_what_every_client_was_sent_wherever_it_is_connected() {
    let etcd = Etcd::single().await;
    let mut mesh = Mesh::builder()
        .nodes(2)
        .replicas(3, &etcd.store())
        .start()
        .await;
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("b"), &["e1"]).await;
    let at = ["r1", "r2", "r3"].map(|name| (name, mesh.replica(name).grpc));
    let stock = [Kind::Grpcio, Kind::GrpcGo, Kind::GrpcJs];
    let mut running = Vec::new();
    for (kind, (_, replica)) in stock.into_iter().zip(at) {
        let client = Client::start(kind, &mesh, replica);
        client.reaches(&["e1"]).await;
        running.push(client);
    }
    let everybody = ["a", "b", "stock-grpc-go", "stock-grpc-js", "stock-grpcio"];
    let without = r#"{"exclude_resource_contents":true}"#;
    let one = r#"{"node_matchers":[{"node_id":{"exact":"stock-grpc-js"}}],"exclude_resource_contents":true}"#;
    for (name, replica) in at {
        let what = format!("{name} reports every client");
        until(&what, async || {
            let method = format!("{CLIENT_STATUS}/FetchClientStatus");
            let text = answers(replica, &["-d", without], &[&method]).await;
            let found = clients(&text)?;
            let ids: Vec<_> = found.iter().map(|(id, _)| id).collect();
            seen(ids == everybody, text)
        })
        .await;
        let what = format!("{name} reports what the one at r3 has taken");
        until(&what, async || {
            let method = format!("{CLIENT_STATUS}/StreamClientStatus");
            let text = answers(replica, &["-d", one], &[&method]).await;
            let found = clients(&text)?;
            let taken = ["ClusterLoadAssignment", "heddle-echo.default", "ACKED"];
            let good = matches!(
                found.as_slice(),
                [(id, held)] if id == "stock-grpc-js" && held.iter().any(|each| *each == taken)
            );
            seen(good, text)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_details_of_a_refusal_are_shown_in_words() {
    let mesh = Mesh::builder().start().await;
    let (control, node) = (mesh.grpc, mesh.node("a"));
    let register = "heddle.registry.v1.Registry/Register";
    for (addr, word) in [
        (control, "REGISTER_WITH_THE_AGENT"),
        (node.agent, "instance"),
    ] {
        let ran = grpcurl(addr, &[], &[register]).await;
        let output = ran.all();
        assert_ne!(ran.code, Some(0), "{output}");
        assert!(
            output.contains("\"@type\"") && output.contains(word),
            "{output}"
        );
        assert!(!output.contains("is not recognized"), "{output}");
    }
}
