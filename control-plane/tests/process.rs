//! heddle-control as a process: its output, its addresses, why it refuses to start, and how it stops.

// clippy.toml allows these in test functions only; helpers need them too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod control;

use std::{net::TcpStream, path::Path, process::Output};

use control::{Control, FREE, command};

use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// Asserts one line on stderr, exit code 2 and nothing on stdout; returns the line.
fn refusal(store: &Path, options: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command(store, options).output().unwrap();
    assert_eq!(status.code(), Some(2));
    assert!(stdout.is_empty());
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim().to_owned()
}

#[test]
fn it_answers_http_once_it_is_ready_and_stops_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("a/new/folder/control.redb");
    let control = Control::start(&store, &FREE);
    assert_eq!(
        control.value("store"),
        format!("embedded:{}", store.display())
    );
    assert!(control.get("/readyz").starts_with("HTTP/1.1 200"));
    assert!(control.get("/healthz").ends_with("ok\n"));
    let metrics = control.get("/metrics");
    for line in [
        "heddle_xds_clients 0",
        "heddle_registry_replicas 1",
        "heddle_xds_encodes_total{type=\"endpoint\"} 0",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} in {metrics}"
        );
    }
    assert!(control.get("/").starts_with("HTTP/1.1 404"));
    assert_eq!(control.terminate(), Some(0));
    // The store is closed: the next process can open it.
    assert_eq!(Control::start(&store, &FREE).terminate(), Some(0));
}

#[test]
fn what_keeps_it_from_starting_is_one_line_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let running = Control::start(&store, &FREE);
    let other = folder.path().join("other");
    let taken = running.value("grpc");
    let (_, port) = taken.rsplit_once(':').unwrap();
    let message = refusal(&other, &["--listen", taken, "--http", "127.0.0.1:0"]);
    assert_eq!(
        message,
        format!(
            "error: --listen {taken}: port {port} on 127.0.0.1 is in use by another process: stop it or choose \
             another port (0 takes any free one)"
        )
    );
    let message = refusal(&other, &["--listen", "127.0.0.1:0", "--http", taken]);
    assert!(
        message.starts_with(&format!(
            "error: --http {taken}: port {port} on 127.0.0.1 is in use"
        )),
        "{message}"
    );
    let message = refusal(&store, &FREE);
    assert!(message.contains("in use by another process"), "{message}");
    what_is_wrong_with_an_etcd_store_names_the_option(&other);
    let message = refusal(&other, &["--renew-interval", "9s"]);
    assert!(message.contains("--lease-ttl"), "{message}");
    assert!(
        running.get("/readyz").starts_with("HTTP/1.1 200"),
        "and nothing else was disturbed"
    );
}

fn what_is_wrong_with_an_etcd_store_names_the_option(folder: &Path) {
    let plain = "etcd:http://127.0.0.1:1";
    let tls = "etcd:https://127.0.0.1:1";
    let check = |options: &[&str], part: &str| {
        let message = refusal(folder, options);
        assert!(
            message.contains(part) && !message.contains('\n'),
            "{message}"
        );
    };
    check(&["--store", "etcd:127.0.0.1:1"], "http://h1:2379");
    check(&["--store", "etcd:http://h1:1,https://h2:1"], "scheme http");
    check(&["--store", tls], "--store-ca FILE");
    check(
        &["--store", tls, "--store-ca", "/none"],
        "--store-ca /none: No such file",
    );
    check(&["--store", plain, "--store-ca", "/none"], "https");
    check(
        &["--store", plain, "--store-cert", "/none"],
        "--store-cert and --store-key must be used together",
    );
    check(
        &["--store", plain, "--store-user", "x"],
        "--store-user and --store-password-file must be used together",
    );
    let password = [
        "--store",
        plain,
        "--store-user",
        "x",
        "--store-password-file",
        "/none",
    ];
    check(&password, "--store-password-file /none: No such file");
    check(&["--store", plain, "--store-prefix", ""], "--store-prefix");
    check(&["--store-user", "x"], "--store-user applies to etcd only");
}

#[test]
fn it_listens_on_several_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("grpc.sock");
    let unix = format!("unix:{}", socket.display());
    let options = [
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &unix,
        "--http",
        "localhost:0",
    ];
    let control = Control::start(&folder.path().join("store"), &options);
    let addresses: Vec<_> = control.value("grpc").split('+').collect();
    assert_eq!((addresses.len(), addresses[1]), (2, unix.as_str()));
    for address in control.value("http").split('+') {
        assert!(TcpStream::connect(address).is_ok(), "{address}");
    }
    assert!(socket.exists());
    let message = refusal(
        &folder.path().join("other"),
        &["--listen", &unix, "--http", "127.0.0.1:0"],
    );
    assert!(
        message.contains("in use by another process: stop it or choose another path"),
        "{message}"
    );
    assert_eq!(control.terminate(), Some(0));
    assert!(!socket.exists(), "its file goes with it");
}

#[tokio::test]
async fn health_and_reflection_know_every_service() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::start(&folder.path().join("store"), &FREE);
    let address = format!("http://{}", control.value("grpc"));
    let channel = tonic::transport::Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let ask = |message| ServerReflectionRequest {
        message_request: Some(message),
        ..Default::default()
    };
    let list = tokio_stream::iter([ask(MessageRequest::ListServices(String::new()))]);
    let mut answers = reflection
        .server_reflection_info(list)
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    let mut names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
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
        ]
    );
    let symbols: Vec<_> = names
        .iter()
        .map(|name| ask(MessageRequest::FileContainingSymbol(name.clone())))
        .collect();
    let opened = reflection
        .server_reflection_info(tokio_stream::iter(symbols))
        .await;
    let mut answers = opened.unwrap().into_inner();
    for name in &names {
        let answer = answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap();
        assert!(
            matches!(answer, MessageResponse::FileDescriptorResponse(_)),
            "{name}: {answer:?}"
        );
    }
    let mut health = HealthClient::new(channel);
    for name in names
        .iter()
        .filter(|name| !name.starts_with("grpc."))
        .chain([&String::new()])
    {
        let request = HealthCheckRequest {
            service: name.clone(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status().as_str_name(), "SERVING", "{name}");
    }
}
