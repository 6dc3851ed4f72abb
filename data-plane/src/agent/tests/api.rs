use std::{net::SocketAddr, time::Duration};

use heddle_proto::registry::v1::{
    DeregisterRequest, Health, Instance, KeepAliveRequest, ListInstancesRequest,
    ListServicesRequest, RegisterRequest, WatchInstancesRequest, registry_client::RegistryClient,
    registry_server::RegistryServer,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

use super::{instance, listener, remover, soon, until};
use crate::{
    admin::serve,
    agent::{Agent, api::AgentApi, keep_alive::Stop},
};

/// An agent with its API on a free port, and no control plane.
async fn api(ttl: Duration) -> (Agent, RegistryClient<Channel>) {
    let agent = Agent::with_ttl("a", ttl, ttl / 3);
    let stop = Stop::default();
    let service = AgentApi::new(agent.clone(), remover(&agent), |ip| ip.is_loopback(), stop);
    let (listener, addr): (_, SocketAddr) = listener().await;
    let routes = tonic::service::Routes::new(RegistryServer::new(service));
    let access = serve::Access {
        connections: heddle_listen::Connections::new("agent", heddle_listen::Limits::of(64)),
        guard: std::sync::Arc::default(),
    };
    let socket = heddle_listen::Socket::Tcp(listener, addr);
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(serve::grpc(socket, access, routes, stop));
    let client = RegistryClient::connect(format!("http://{addr}"))
        .await
        .unwrap();
    tokio::spawn(agent.clone().sweep());
    (agent, client)
}

fn request(id: &str) -> RegisterRequest {
    RegisterRequest {
        instance: Some(instance("echo", id, "127.0.0.1:7001")),
        ..RegisterRequest::default()
    }
}

/// Issue 10, B3: a call to it would loop until its deadline.
#[tokio::test]
async fn an_instance_is_not_registered_where_the_proxy_itself_listens() {
    let (agent, mut client) = api(LONG).await;
    agent.add_listener("outbound", "127.0.0.1:15001".parse().unwrap());
    agent.add_listener("admin", "[::]:15000".parse().unwrap());
    for (address, listener) in [
        ("127.0.0.1:15001", "outbound"),
        ("[::ffff:127.0.0.1]:15001", "outbound"),
        ("127.0.0.5:15000", "admin"),
        ("[::1]:15000", "admin"),
    ] {
        let mut bad = request("e1");
        bad.instance.as_mut().unwrap().address = address.into();
        let status = client.register(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{address}");
        let found = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(found[0].field, "instance.address");
        let text = &found[0].description;
        assert!(
            text.contains(&format!("listener of this proxy ({listener})")),
            "{text}"
        );
    }
    client.register(request("e2")).await.unwrap();
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_instance_lives_as_long_as_its_stream() {
    let (agent, mut client) = api(LONG).await;
    let registered = client.register(request("e1")).await.unwrap().into_inner();
    assert_eq!(registered.node, "a");
    assert_eq!(registered.ttl.unwrap().seconds, 60);
    let (beats, stream) = mpsc::channel(4);
    beats
        .send(KeepAliveRequest {
            registration: registered.registration.clone(),
            ..KeepAliveRequest::default()
        })
        .await
        .unwrap();
    let mut answers = client
        .keep_alive(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answers.message().await.unwrap().unwrap().health(),
        Health::Healthy
    );
    // Later beats need not name the registration.
    beats.send(KeepAliveRequest::default()).await.unwrap();
    assert_eq!(
        answers.message().await.unwrap().unwrap().health(),
        Health::Healthy
    );
    drop(beats);
    drop(answers);
    until(&agent, "out when its stream breaks", |views| {
        views.is_empty()
    })
    .await;
    assert_eq!(cause(&agent).unwrap(), "its keep-alive stream broke");
}

#[tokio::test]
async fn without_beats_it_is_out_after_the_ttl() {
    let (agent, mut client) = api(Duration::from_millis(60)).await;
    let registered = client.register(request("e1")).await.unwrap().into_inner();
    until(
        &agent,
        "out after the TTL",
        crate::agent::instance_table::Views::is_empty,
    )
    .await;
    assert_eq!(cause(&agent).unwrap(), "no heartbeat for 60ms");
    // The message then says what to do.
    let beat = tokio_stream::once(KeepAliveRequest {
        registration: registered.registration.clone(),
        ..KeepAliveRequest::default()
    });
    let mut answers = client.keep_alive(beat).await.unwrap().into_inner();
    let status = soon("an answer", answers.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status.message().contains("Register"),
        "{}",
        status.message()
    );
    let gone = DeregisterRequest {
        registration: registered.registration,
        ..DeregisterRequest::default()
    };
    assert_eq!(
        client.deregister(gone).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_bad_registration_names_the_field_and_changes_nothing() {
    let (agent, mut client) = api(LONG).await;
    let bad = Instance {
        service: "Bad_Name".into(),
        address: "10.255.255.1:1".into(),
        ..instance("", "e1", "")
    };
    let bad = RegisterRequest {
        instance: Some(bad),
        ..RegisterRequest::default()
    };
    let status = client.register(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_details_bad_request().unwrap();
    let fields: Vec<_> = details
        .field_violations
        .iter()
        .map(|v| v.field.as_str())
        .collect();
    assert_eq!(fields, ["instance.service", "instance.address"]);
    let status = client
        .register(RegisterRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        status.get_details_bad_request().unwrap().field_violations[0].field,
        "instance"
    );
    assert!(agent.views().1.is_empty());
}

#[tokio::test]
async fn deregister_takes_out_at_once_and_answers_with_no_control_plane() {
    let (agent, mut client) = api(LONG).await;
    let registered = client.register(request("e1")).await.unwrap().into_inner();
    let ask = DeregisterRequest {
        registration: registered.registration,
        wait_acknowledged: true,
        ..DeregisterRequest::default()
    };
    let answer = soon("an answer", client.deregister(ask))
        .await
        .unwrap()
        .into_inner();
    // No control plane is configured: this node is the whole mesh.
    assert!(answer.acknowledged);
    assert!(agent.views().1.is_empty());
}

/// The cause of the only removal.
fn cause(agent: &Agent) -> Option<String> {
    let (_, _, gone) = agent.unreported(0);
    assert_eq!(gone.len(), 1);
    let cause = gone.into_values().next().unwrap();
    cause.map(|cause| cause.to_string())
}

#[tokio::test]
async fn who_takes_out_another_says_why_and_who_takes_out_itself_does_not() {
    for wait_acknowledged in [false, true] {
        for words in ["", "its process ended"] {
            let (agent, mut client) = api(LONG).await;
            let registered = client.register(request("e1")).await.unwrap().into_inner();
            let ask = DeregisterRequest {
                registration: registered.registration,
                wait_acknowledged,
                cause: words.to_owned(),
                ..DeregisterRequest::default()
            };
            soon("an answer", client.deregister(ask)).await.unwrap();
            let expected = Some(words.to_owned()).filter(|words| !words.is_empty());
            assert_eq!(cause(&agent), expected, "{wait_acknowledged}");
        }
    }
}

#[tokio::test]
async fn lists_and_watches_show_what_is_here() {
    let (_, mut client) = api(LONG).await;
    client.register(request("e2")).await.unwrap();
    client.register(request("e1")).await.unwrap();
    let mut shop = request("u1");
    if let Some(instance) = &mut shop.instance {
        instance.service = "users".into();
        instance.namespace = "shop".into();
    }
    let users = client.register(shop).await.unwrap().into_inner();

    let services = client
        .list_services(ListServicesRequest {})
        .await
        .unwrap()
        .into_inner()
        .services;
    let seen: Vec<_> = services
        .iter()
        .map(|s| (s.name.as_str(), s.instances, s.healthy_instances))
        .collect();
    assert_eq!(seen, [("echo.default", 2, 2), ("users.shop", 1, 1)]);
    let of = |service: &str| ListInstancesRequest {
        service: service.into(),
    };
    for (service, expect) in [
        ("", vec!["e1", "e2", "u1"]),
        ("echo", vec!["e1", "e2"]),
        ("users.shop", vec!["u1"]),
        ("users", vec![]),
    ] {
        let instances = client
            .list_instances(of(service))
            .await
            .unwrap()
            .into_inner()
            .instances;
        let ids: Vec<_> = instances
            .iter()
            .map(|i| i.instance.as_ref().unwrap().id.as_str())
            .collect();
        assert_eq!(ids, expect, "{service}");
    }

    let watch = WatchInstancesRequest {
        service: "users.shop".into(),
    };
    let mut steps = client.watch_instances(watch).await.unwrap().into_inner();
    let first = steps.message().await.unwrap().unwrap();
    assert!(first.initial_done);
    assert_eq!(first.changed.len(), 1);
    let gone = DeregisterRequest {
        registration: users.registration,
        ..DeregisterRequest::default()
    };
    client.deregister(gone).await.unwrap();
    let second = soon("the change", steps.message()).await.unwrap().unwrap();
    assert_eq!(second.removed, ["a/users.shop/u1"]);
    assert!(!second.initial_done);
}
