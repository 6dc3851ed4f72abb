use std::net::SocketAddr;

use heddle_proto::registry::v1::{Health, HealthCheck, Instance, health_check::Kind};
use prost::bytes::Bytes;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::ServingStatus;

use super::{checked, free_address, instance, listener, until};
use crate::agent::{
    Agent, InstanceFailure,
    key::InstanceKey,
    reflect::{self, ReflectError},
    schema::files,
};

enum Version {
    V1,
    V1Alpha,
}

/// A gRPC server with reflection over Heddle's own descriptors.
async fn reflecting(version: Version) -> SocketAddr {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(heddle_proto::DESCRIPTOR_SET);
    let (listener, addr) = listener().await;
    let incoming = TcpListenerStream::new(listener);
    let mut server = tonic::transport::Server::builder();
    match version {
        Version::V1 => {
            let service = builder.build_v1().unwrap();
            tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
        }
        Version::V1Alpha => {
            let service = builder.build_v1alpha().unwrap();
            tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
        }
    }
    addr
}

#[tokio::test]
async fn descriptors_are_learned_by_both_versions_of_reflection() {
    for version in [Version::V1, Version::V1Alpha] {
        let addr = reflecting(version).await;
        let report = reflect::query(&addr.to_string(), &|_| {}).await.unwrap();
        let schema = report.reflected.schema.unwrap();
        let given = files(&Bytes::from_static(heddle_proto::DESCRIPTOR_SET)).unwrap();
        for file in files(&schema.bytes).unwrap() {
            let name = &file.index.name;
            let original = given.iter().find(|f| &f.index.name == name);
            // The server's own reflection files are included; Heddle's are unchanged byte for byte.
            if let Some(original) = original {
                assert_eq!(original.bytes, file.bytes, "{name}");
            }
        }
        let agent = Agent::new("a");
        let unnamed = Instance {
            protos: vec![],
            ..instance("echo", "e1", &addr.to_string())
        };
        agent.register(checked(unnamed)).unwrap();
        until(&agent, "its proto services", |views| {
            let protos = views.values().flat_map(|v| &v.protos);
            protos
                .into_iter()
                .any(|p| p.name == "heddle.echo.v1.Echo" && p.idempotent_methods == ["Unary"])
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_without_reflection_is_distinguished_from_one_that_is_not_there() {
    let (listener, addr) = listener().await;
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    assert!(matches!(
        reflect::query(&addr.to_string(), &|_| {}).await,
        Err(ReflectError::NoReflection)
    ));
    let nobody = free_address().await;
    assert!(matches!(
        reflect::query(&nobody.to_string(), &|_| {}).await,
        Err(ReflectError::Unreachable(_))
    ));
}

#[tokio::test]
async fn grpc_health_decides_when_it_is_the_check() {
    let (listener, addr) = listener().await;
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("my.Service", ServingStatus::NotServing)
        .await;
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let agent = Agent::new("a");
    let check = HealthCheck {
        kind: Kind::Grpc.into(),
        interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        }),
        grpc_service: "my.Service".into(),
        ..HealthCheck::default()
    };
    let one = Instance {
        health: Some(check),
        ..instance("echo", "e1", &addr.to_string())
    };
    agent.register(checked(one)).unwrap();
    let is = |health: Health, words: &'static str| {
        move |views: &crate::agent::instance_table::Views| {
            views
                .values()
                .all(|v| v.health == health && v.reason.contains(words))
        }
    };
    until(
        &agent,
        "not serving yet",
        is(Health::Unhealthy, "NOT_SERVING"),
    )
    .await;
    reporter
        .set_service_status("my.Service", ServingStatus::Serving)
        .await;
    until(&agent, "serving", is(Health::Healthy, "")).await;
    reporter
        .set_service_status("my.Service", ServingStatus::NotServing)
        .await;
    until(
        &agent,
        "no longer serving",
        is(Health::Unhealthy, "NOT_SERVING"),
    )
    .await;
}

#[tokio::test]
async fn an_address_that_refuses_is_out_at_once_and_back_when_it_accepts() {
    let address = free_address().await;
    let agent = Agent::new("a");
    agent
        .register(checked(instance("echo", "e1", &address.to_string())))
        .unwrap();
    let key: InstanceKey = agent.views().1.keys().next().unwrap().clone();
    let health = |agent: &Agent| agent.view(&key).unwrap().health;
    assert_eq!(health(&agent), Health::Healthy);
    agent.report_failure(&key, InstanceFailure::Refused);
    assert_eq!(
        health(&agent),
        Health::Unhealthy,
        "out before anything else is requested"
    );
    let back = tokio::net::TcpListener::bind(address).await.unwrap();
    until(&agent, "back", |views| {
        views.values().all(|v| v.health == Health::Healthy)
    })
    .await;
    // A broken connection is no reason to become unhealthy while the address still accepts.
    let version = agent.views().0;
    agent.report_failure(&key, InstanceFailure::Lost);
    drop(back);
    agent.report_failure(&key, InstanceFailure::Lost);
    until(&agent, "gone", |views| {
        views.values().all(|v| v.health == Health::Unhealthy)
    })
    .await;
    assert!(agent.views().0 > version);
}

#[tokio::test]
async fn http_health_is_any_2xx_of_its_path() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            let good = request[..read].starts_with(b"GET /up HTTP/1.1\r\n");
            let answer: &[u8] = if good {
                b"HTTP/1.1 204 No Content\r\n\r\n"
            } else {
                b"HTTP/1.1 404 Not Found\r\n\r\n"
            };
            stream.write_all(answer).await.unwrap();
        }
    });
    let agent = Agent::new("a");
    for (id, path) in [("good", "/up"), ("bad", "/down")] {
        let check = HealthCheck {
            kind: Kind::Http.into(),
            path: path.into(),
            ..HealthCheck::default()
        };
        let one = Instance {
            health: Some(check),
            ..instance("web", id, &addr.to_string())
        };
        agent.register(checked(one)).unwrap();
    }
    until(&agent, "both checked", |views| {
        let of = |id: &str| views.values().find(|v| v.instance.id == id).unwrap();
        of("good").health == Health::Healthy && of("bad").reason.contains("404")
    })
    .await;
}
