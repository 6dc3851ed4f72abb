//! Registrations and services files with errors: refused with field and remedy, without effect on anything else.

use heddle_proto::registry::v1::registry_client::RegistryClient;
use heddle_proto::registry::v1::{Instance, Protocol, RegisterRequest};
use heddle_tests::echo::{channel, reach};
use heddle_tests::mesh::Mesh;
use heddle_tests::wait::{seen, until};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

fn instance() -> Instance {
    Instance {
        service: "users".to_owned(),
        id: "u1".to_owned(),
        address: "127.0.0.1:7001".to_owned(),
        protos: vec!["users.v1.Users".to_owned()],
        ..Instance::default()
    }
}

fn register(instance: Instance) -> RegisterRequest {
    RegisterRequest {
        instance: Some(instance),
        ..RegisterRequest::default()
    }
}

fn violated_fields(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request();
    details
        .map(|details| details.field_violations)
        .unwrap_or_default()
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_registration_is_refused_with_the_field_that_is_wrong() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.control_has(&["e1"]).await;
    let mut agent = mesh.agent("a");
    let long = "x".repeat(64);
    let faults: Vec<(&str, Instance)> = vec![
        (
            "address",
            Instance {
                address: "nonsense".to_owned(),
                ..instance()
            },
        ),
        (
            "address",
            Instance {
                address: "localhost:7001".to_owned(),
                ..instance()
            },
        ),
        (
            "address",
            Instance {
                address: "127.0.0.1".to_owned(),
                ..instance()
            },
        ),
        (
            "address",
            Instance {
                address: "127.0.0.1:0".to_owned(),
                ..instance()
            },
        ),
        // A documentation address (RFC 5737), which no host has.
        (
            "address",
            Instance {
                address: "192.0.2.7:7001".to_owned(),
                ..instance()
            },
        ),
        (
            "service",
            Instance {
                service: "Users_1".to_owned(),
                ..instance()
            },
        ),
        (
            "service",
            Instance {
                service: String::new(),
                ..instance()
            },
        ),
        (
            "service",
            Instance {
                service: long.clone(),
                ..instance()
            },
        ),
        (
            "service",
            Instance {
                service: "-users".to_owned(),
                ..instance()
            },
        ),
        (
            "namespace",
            Instance {
                namespace: "my.shop".to_owned(),
                ..instance()
            },
        ),
        (
            "id",
            Instance {
                id: "u/1".to_owned(),
                ..instance()
            },
        ),
        (
            "id",
            Instance {
                id: String::new(),
                ..instance()
            },
        ),
        (
            "version",
            Instance {
                version: long,
                ..instance()
            },
        ),
        (
            "weight",
            Instance {
                weight: 1_001,
                ..instance()
            },
        ),
        (
            "protocol",
            Instance {
                protocol: Protocol::Tcp.into(),
                ..instance()
            },
        ),
    ];
    for (field, bad) in faults {
        let words = format!("{bad:?}");
        let status = agent.register(register(bad)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{words}: {status:?}");
        let fields = violated_fields(&status);
        assert!(
            fields
                .iter()
                .any(|named| named == field || named.ends_with(&format!(".{field}"))),
            "{words}: {field} is not among {fields:?}: {status:?}"
        );
    }
    let status = agent
        .register(RegisterRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    // None of them had an effect, as a valid one after them shows; earlier instances are still there.
    let good = Instance {
        service: "zoo".to_owned(),
        ..instance()
    };
    agent.register(register(good)).await.unwrap();
    services_are(&mesh, &["heddle-echo.default", "zoo.default"]).await;
    reach(&mesh.channel("a"), &["e1"]).await;
}

/// Issue 10, B3: `Register` refuses the listeners of all proxies of the host. Its reflection is not queried, which would give
/// the service every proto service of the mesh.
#[tokio::test(flavor = "multi_thread")]
async fn the_listener_of_any_proxy_is_refused_at_once_and_claims_nothing() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    reach(&mesh.channel("b"), &["e1"]).await;
    let mut agent = mesh.agent("a");
    for name in ["a", "b"] {
        let node = mesh.node(name);
        let listeners = [node.outbound, node.inbound, node.agent, node.admin];
        for (at, address) in listeners.into_iter().enumerate() {
            let bad = Instance {
                service: format!("looper-{name}-{at}"),
                address: address.to_string(),
                protos: Vec::new(),
                ..instance()
            };
            let status = agent.register(register(bad)).await.unwrap_err();
            let words = format!("{name} {at}: {status:?}");
            assert_eq!(status.code(), Code::InvalidArgument, "{words}");
            assert_eq!(violated_fields(&status), ["instance.address"], "{words}");
            assert!(status.message().contains(&address.to_string()), "{words}");
        }
    }
    // The same answer the second time.
    let again = Instance {
        service: "looper-b-0".into(),
        address: mesh.node("b").outbound.to_string(),
        ..instance()
    };
    for _ in 0..3 {
        let status = agent.register(register(again.clone())).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    services_are(&mesh, &["heddle-echo.default"]).await;
    let conflicts = mesh.events().await.into_iter();
    let conflicts: Vec<_> = conflicts.filter(|it| it.kind == "path-conflict").collect();
    assert!(conflicts.is_empty(), "{conflicts:?}");
    assert!(
        mesh.node("a")
            .proxy()
            .output()
            .contains("refused by the control plane")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_sends_a_registration_to_the_agent() {
    let mesh = Mesh::builder().start().await;
    let mut control = RegistryClient::new(channel(mesh.grpc));
    let status = control.register(register(instance())).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("agent"), "{status:?}");
    assert!(
        status.message().contains("15002"),
        "says where to go: {status:?}"
    );
}

const GOOD: &str = "service: good\nprotos: [good.v1.Good]\ninstances:\n  - {id: g1, address: \"127.0.0.1:7001\"}\n";

/// Waits until exactly these services have instances; a service stays known after its last one left.
async fn services_are(mesh: &Mesh, expected: &[&str]) {
    until("the services of the mesh", async || {
        let mut control = RegistryClient::new(channel(mesh.grpc));
        let request = heddle_proto::registry::v1::ListServicesRequest {};
        let answer = control
            .list_services(request)
            .await
            .map_err(|status| status.to_string())?;
        let services = answer.into_inner().services;
        let living = services.into_iter().filter(|service| service.instances > 0);
        let names: Vec<String> = living.map(|service| service.name).collect();
        seen(names == expected, format!("{names:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_file_with_a_mistake_is_named_and_leaves_the_others_alone() {
    let bad = "service: Bad_Name\ninstances:\n  - {id: b1, address: \"127.0.0.1:7002\"}\n";
    let mesh = Mesh::builder()
        .services_file("a", "good.yaml", GOOD)
        .services_file("a", "bad.yaml", bad)
        .start()
        .await;
    services_are(&mesh, &["good.default"]).await;
    let logged = async |words: &'static [&'static str]| {
        until(
            "the log names the file, the field and the remedy",
            async || {
                let lines = mesh.node("a").proxy().stderr();
                let found = lines
                    .iter()
                    .any(|line| words.iter().all(|word| line.contains(word)));
                seen(found, lines.join("\n"))
            },
        )
        .await;
    };
    logged(&["bad.yaml", "service", "Bad_Name"]).await;

    // Corrected while the proxy runs.
    mesh.write_services_file("a", "bad.yaml", &bad.replace("Bad_Name", "mended"));
    services_are(&mesh, &["good.default", "mended.default"]).await;

    // Invalid YAML again: the earlier content stays, because an error must not take a service down. A later file shows
    // that this one was read.
    mesh.write_services_file("a", "bad.yaml", "service: [");
    logged(&["bad.yaml", "its last good content stays"]).await;
    let after = GOOD.replace("good", "after").replace("g1", "a1");
    mesh.write_services_file("a", "after.yaml", &after);
    services_are(&mesh, &["after.default", "good.default", "mended.default"]).await;

    // Unknown options are errors too.
    mesh.write_services_file(
        "a",
        "typo.yaml",
        &GOOD.replace("service: good", "service: typo\nwieght: 3"),
    );
    logged(&["typo.yaml", "wieght"]).await;

    // Removed with its file.
    std::fs::remove_file(mesh.node("a").services_dir.join("bad.yaml")).unwrap();
    services_are(&mesh, &["after.default", "good.default"]).await;
}
