//! Health checks as seen by the whole mesh, and how instances leave: each state with its reason in the status API, and
//! no call fails.

use std::time::Duration;

use heddle_proto::registry::v1::{
    DeregisterRequest, Health, HealthCheck, Instance, RegisterRequest, health_check::Kind,
};
use heddle_tests::echo::reach;
use heddle_tests::load::{Kind as CallKind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::wait::{seen, until};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::ServingStatus;

/// State and reason of each instance in the control plane's status.
async fn health(mesh: &Mesh, service: &str) -> Result<Vec<(Health, String)>, String> {
    let endpoints = mesh.service(service).await?.endpoints.into_iter();
    Ok(endpoints.map(|e| (e.health(), e.health_reason)).collect())
}

async fn until_health(mesh: &Mesh, service: &str, state: Health, word: &str) {
    until("the state in status", async || {
        let now = health(mesh, service).await?;
        let holds = matches!(&now[..], [(s, why)] if *s == state && why.contains(word));
        seen(holds, format!("{now:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_instance_says_of_itself_is_seen_everywhere_with_its_reason() {
    let mesh = Mesh::builder().nodes(2).start().await;
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    reporter
        .set_service_status("shop", ServingStatus::NotServing)
        .await;
    let instance = Instance {
        service: "shop".into(),
        id: "s1".into(),
        address,
        protos: vec!["shop.Shop".into()],
        health: Some(HealthCheck {
            kind: Kind::Grpc.into(),
            interval: prost_types::Duration::try_from(Duration::from_millis(100)).ok(),
            grpc_service: "shop".into(),
            ..HealthCheck::default()
        }),
        ..Instance::default()
    };
    let request = RegisterRequest {
        instance: Some(instance),
        ..RegisterRequest::default()
    };
    let mut agent = mesh.agent("b");
    let registered = agent.register(request).await.unwrap().into_inner();
    until_health(&mesh, "shop", Health::Unhealthy, "NOT_SERVING").await;
    reporter
        .set_service_status("shop", ServingStatus::Serving)
        .await;
    until_health(&mesh, "shop", Health::Healthy, "").await;
    reporter
        .set_service_status("shop", ServingStatus::NotServing)
        .await;
    until_health(&mesh, "shop", Health::Unhealthy, "NOT_SERVING").await;
    let leave = DeregisterRequest {
        registration: registered.registration,
        wait_acknowledged: true,
        ..DeregisterRequest::default()
    };
    let answer = agent.deregister(leave).await.unwrap().into_inner();
    assert!(answer.acknowledged, "{answer:?}");
    // By then every client has acknowledged that it gets no new calls; its removal arrives a moment later.
    let left = health(&mesh, "shop").await.unwrap();
    let drains = |(state, _): &(Health, String)| *state == Health::Draining;
    assert!(left.iter().all(drains), "{left:?}");
    until("it is gone", async || {
        let now = health(&mesh, "shop").await?;
        seen(now.is_empty(), format!("{now:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stops_is_left_by_all_before_it_goes_and_no_call_fails() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    let mut leaves = mesh.echo_start("b", "e1").spawn();
    leaves.ready().await;
    mesh.echo("b", "e2").await;
    reach(&mesh.channel("a"), &["e1", "e2"]).await;
    let through = [mesh.node("a").outbound, mesh.node("b").outbound];
    let load = Load::start(&Plan::new(CallKind::Unsafe, &through));
    load.more(200).await;
    leaves.stop_cleanly().await;
    // It leaves when all clients have acknowledged, not because a wait ran out.
    let output = leaves.output();
    assert!(
        !output.contains("before every client has acknowledged"),
        "{output}"
    );
    load.more(200).await;
    load.finish().await.assert_none_failed(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_file_goes_drains_and_the_log_says_when_it_may_be_stopped() {
    let mesh = Mesh::builder().nodes(2).start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let text = format!(
        "service: filed\nprotos: [filed.Filed]\nhealth: {{kind: tcp}}\ninstances:\n  - {{id: f1, address: \"{address}\"}}\n"
    );
    mesh.write_services_file("b", "filed.yaml", &text);
    until_health(&mesh, "filed", Health::Healthy, "").await;
    std::fs::remove_file(mesh.node("b").services_dir.join("filed.yaml")).unwrap();
    until("it is gone", async || {
        let now = health(&mesh, "filed").await?;
        seen(now.is_empty(), format!("{now:?}"))
    })
    .await;
    until("the log", async || {
        let output = mesh.node("b").proxy().stderr().join("\n");
        seen(output.contains("may be stopped"), output)
    })
    .await;
}
