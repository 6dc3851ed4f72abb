//! The admin port of a proxy, gRPC health by service on outbound, and the HTTP port of the control plane.

use heddle_tests::echo::{call, payload, reach};
use heddle_tests::http_get::get;
use heddle_tests::mesh::Mesh;
use heddle_tests::wait::{seen, until};
use serde_json::Value;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_counts_its_calls_and_shows_what_it_holds() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    let failed = call(
        mesh.node("a").outbound,
        heddle_proto::echo::v1::EchoRequest {
            status_code: 5,
            ..payload("x")
        },
    );
    failed.await.unwrap_err();
    let admin = mesh.node("a").admin;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(admin, path).await.unwrap().0, 200, "{path}");
    }
    until("the calls are counted, by service and status", async || {
        let (status, text) = get(admin, "/metrics").await?;
        let calls = text
            .lines()
            .filter(|line| line.starts_with("heddle_calls_total{"));
        let of_echo = calls.filter(|line| line.contains("heddle-echo")).count();
        seen(status == 200 && of_echo >= 2, text)
    })
    .await;

    let (status, text) = get(admin, "/config").await.unwrap();
    assert_eq!(status, 200);
    let config: Value = serde_json::from_str(&text).unwrap();
    let options = config["options"].as_object().expect("options by name");
    assert!(options.contains_key("outbound"), "{text}");
    assert!(
        !options.contains_key("gateway"),
        "it has no effect yet: {text}"
    );
    let inbound_of_b = mesh.node("b").inbound.to_string();
    for part in ["heddle-echo.default", "e1", &inbound_of_b] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(get(admin, "/nothing").await.unwrap().0, 404);

    for path in ["/healthz", "/readyz"] {
        let (status, _) = get(mesh.http, path).await.unwrap();
        assert_eq!(status, 200, "{path} of the control plane");
    }
    for listener in [admin, mesh.http] {
        let (status, text) = get(listener, "/metrics").await.unwrap();
        assert_eq!(status, 200);
        let helps: Vec<_> = text.lines().filter(|it| it.starts_with("# HELP")).collect();
        assert!(!helps.is_empty());
        for help in helps {
            assert!(help.ends_with('.'), "no full stop: {help}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_by_service_name_follows_the_mesh() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    let mut health = HealthClient::new(mesh.channel("a"));
    let ask = |name: &str| HealthCheckRequest {
        service: name.to_owned(),
    };
    for name in [
        "",
        "heddle-echo",
        "heddle-echo.default",
        "heddle.echo.v1.Echo",
    ] {
        until("the service is healthy", async || {
            let answer = health
                .check(ask(name))
                .await
                .map_err(|status| status.to_string())?;
            let status = answer.into_inner().status();
            seen(
                status == ServingStatus::Serving,
                format!("{name:?}: {status:?}"),
            )
        })
        .await;
    }
    let unknown = health.check(ask("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = health.watch(ask("heddle-echo")).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap().status();
    assert_eq!(first, ServingStatus::Serving);
    mesh.stop_instance("b", "e1").await;
    let next = watch.message().await.unwrap().unwrap().status();
    assert_ne!(next, ServingStatus::Serving);
}
