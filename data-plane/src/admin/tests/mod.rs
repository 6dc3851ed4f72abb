//! Reflection and health as grpcurl and health checkers see them.

mod catalog;
mod http;

use std::{collections::HashMap, sync::Arc, time::Duration};

use heddle_proto::registry::v1::Instance;
use prost::{Message as _, bytes::Bytes};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

use super::{
    catalog::{Catalog, Source},
    health::ProxyHealth,
    reflection::Reflection,
    serve,
};
use crate::{
    agent::{
        Agent, reflect,
        schema::files,
        validate::{Origin, check},
    },
    mesh::{LocalNode, TableBuilder},
    readiness::{self, Readiness},
    xds::{self, schemas::Schemas},
};

/// A file with one message, one service and, on the message, an option that only a private extension defines.
fn file(
    name: &str,
    package: &str,
    message: &str,
    service: &str,
    imports: &[&str],
) -> FileDescriptorProto {
    let method = MethodDescriptorProto {
        name: Some("Call".into()),
        input_type: Some(format!(".{package}.{message}")),
        output_type: Some(format!(".{package}.{message}")),
        ..Default::default()
    };
    let services = if service.is_empty() {
        vec![]
    } else {
        vec![ServiceDescriptorProto {
            name: Some(service.into()),
            method: vec![method],
            ..Default::default()
        }]
    };
    FileDescriptorProto {
        name: Some(name.into()),
        package: Some(package.into()),
        dependency: imports.iter().map(|&i| i.to_owned()).collect(),
        message_type: vec![DescriptorProto {
            name: Some(message.into()),
            ..Default::default()
        }],
        service: services,
        ..Default::default()
    }
}

/// An option that generated types do not know: field 50000 of the file's options.
const UNKNOWN_OPTION: &[u8] = &[0x42, 0x05, 0x82, 0xb5, 0x18, 0x01, b'x'];

fn set(files: &[FileDescriptorProto]) -> Bytes {
    let mut out = Vec::new();
    for file in files {
        let mut raw = file.encode_to_vec();
        raw.extend_from_slice(UNKNOWN_OPTION);
        crate::agent::wire::put_bytes(&mut out, 1, &raw);
    }
    Bytes::from(out)
}

/// All services of the internal server, on a free port.
struct Mesh {
    agent: Agent,
    readiness: watch::Sender<Readiness>,
    channel: Channel,
    /// The table builder ends when it is dropped.
    xds: watch::Sender<Arc<xds::View>>,
    used: mpsc::Receiver<Arc<str>>,
}

async fn mesh() -> Mesh {
    let agent = Agent::new("a");
    let (kept_xds, xds) = watch::channel(Arc::new(xds::View::default()));
    let local_node = LocalNode {
        node: "a".into(),
        own_names: vec![],
        region: String::new(),
        zone: String::new(),
    };
    let (builder, mesh) = TableBuilder::new(local_node, agent.clone(), xds);
    tokio::spawn(builder.run(|_| {}));
    let (readiness, state) = readiness::channel();
    let (schemas, _) = Schemas::new();
    let (uses, used) = xds::client::Uses::new(Duration::from_millis(50));
    let routes = serve::common(
        ProxyHealth::mesh(state, mesh.clone(), uses),
        Reflection::mesh(mesh, agent.clone(), schemas),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Channel::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    Mesh {
        agent,
        readiness,
        channel,
        xds: kept_xds,
        used,
    }
}

fn register(agent: &Agent, service: &str, set: &Bytes) -> Arc<str> {
    let instance = Instance {
        service: service.into(),
        id: "i1".into(),
        address: "127.0.0.1:9".into(),
        ..Instance::default()
    };
    agent
        .register(check(instance, set, Origin::Registration, &|_| true).unwrap())
        .unwrap()
}

async fn ask(channel: &Channel, question: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(channel.clone());
    let request = ServerReflectionRequest {
        host: "h".into(),
        message_request: Some(question),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap()
}

async fn listed(channel: &Channel) -> Vec<String> {
    match ask(channel, MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => {
            list.service.into_iter().map(|s| s.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Waits for the table with a change of the agent.
async fn until_listed(channel: &Channel, name: &str) -> Vec<String> {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let names = listed(channel).await;
        if names.iter().any(|n| n == name) {
            return names;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "{name} is not listed: {names:?}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_whole_mesh_is_listed_and_described() {
    let mesh = mesh().await;
    let echo = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let users = set(&[file("users.proto", "users", "User", "Users", &[])]);
    register(&mesh.agent, "echo", &echo);
    register(&mesh.agent, "users", &users);
    let names = until_listed(&mesh.channel, "users.Users").await;
    for name in [
        "heddle.echo.v1.Echo",
        "users.Users",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(
            names.iter().any(|n| n == name),
            "{name} is not in {names:?}"
        );
        let answer = ask(
            &mesh.channel,
            MessageRequest::FileContainingSymbol(name.into()),
        )
        .await;
        assert!(
            matches!(answer, MessageResponse::FileDescriptorResponse(_)),
            "{name}: {answer:?}"
        );
    }
    assert!(names.is_sorted());
    let answer = ask(
        &mesh.channel,
        MessageRequest::FileContainingSymbol("no.Such".into()),
    )
    .await;
    assert!(
        matches!(answer, MessageResponse::ErrorResponse(e) if e.error_code == i32::from(Code::NotFound))
    );
    let answer = ask(
        &mesh.channel,
        MessageRequest::FileByFilename("users.proto".into()),
    )
    .await;
    let MessageResponse::FileDescriptorResponse(found) = answer else {
        panic!("{answer:?}")
    };
    let given = FileDescriptorSet::decode(users.clone()).unwrap();
    assert_eq!(
        FileDescriptorProto::decode(found.file_descriptor_proto[0].as_slice()).unwrap(),
        given.file[0]
    );
    assert!(found.file_descriptor_proto[0].ends_with(UNKNOWN_OPTION));

    // The older version of the protocol gives the same answer.
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(mesh.channel.clone());
    let question = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
        "users.Users".into(),
    );
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
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
    let expect = v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(
        v1alpha::FileDescriptorResponse {
            file_descriptor_proto: found.file_descriptor_proto,
        },
    );
    assert_eq!(answer, expect);
}

#[tokio::test]
async fn our_own_reflection_client_reads_our_own_server() {
    let mesh = mesh().await;
    register(
        &mesh.agent,
        "echo",
        &Bytes::from_static(heddle_proto::DESCRIPTOR_SET),
    );
    until_listed(&mesh.channel, "heddle.echo.v1.Echo").await;
    let (questions, stream) = mpsc::channel(1);
    drop(questions);
    // A client that sends nothing does no harm.
    let mut client = ServerReflectionClient::new(mesh.channel.clone());
    let empty: ReceiverStream<ServerReflectionRequest> = ReceiverStream::new(stream);
    assert!(
        client
            .server_reflection_info(empty)
            .await
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .is_none()
    );
    let names = listed(&mesh.channel).await;
    assert!(!names.is_empty());
    assert!(matches!(
        reflect::query("127.0.0.1:1", &|_| {}).await,
        Err(reflect::ReflectError::Unreachable(_))
    ));
}

#[tokio::test]
async fn health_by_mesh_name_by_proto_service_and_of_the_proxy() {
    let mesh = mesh().await;
    let registration = register(
        &mesh.agent,
        "users",
        &set(&[file("users.proto", "users", "User", "Users", &[])]),
    );
    until_listed(&mesh.channel, "users.Users").await;
    let client = HealthClient::new(mesh.channel.clone());
    let check = |name: &str| {
        let (mut client, service) = (client.clone(), name.to_owned());
        async move {
            client
                .check(HealthCheckRequest { service })
                .await
                .map(|a| a.into_inner().status())
        }
    };
    assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
    mesh.readiness.send_replace(Readiness::Ready);
    for name in [
        "",
        "users",
        "users.default",
        "users.default.mesh",
        "users.Users",
    ] {
        assert_eq!(
            check(name).await.unwrap(),
            ServingStatus::Serving,
            "\"{name}\""
        );
    }
    assert_eq!(check("user").await.unwrap_err().code(), Code::NotFound);

    let mut watcher = client.clone();
    let request = HealthCheckRequest {
        service: "users.Users".into(),
    };
    let mut steps = watcher.watch(request).await.unwrap().into_inner();
    assert_eq!(
        steps.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    // The name is still known, but no instance serves it.
    mesh.agent.deregister(&registration).unwrap();
    let next = tokio::time::timeout(Duration::from_secs(60), steps.message())
        .await
        .expect("a change");
    assert_eq!(next.unwrap().unwrap().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_question_about_a_service_is_a_use_of_it_and_waits_for_its_endpoints() {
    let mut mesh = mesh().await;
    let view = |assignment: Option<Arc<xds::Assignment>>| {
        let index = xds::Index {
            protos: vec![crate::route::ProtoService {
                name: "shop.Carts".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let cluster = xds::Cluster {
            assignment,
            index: Some(Arc::new(index)),
        };
        Arc::new(xds::View {
            clusters: [("carts.shop".to_owned(), cluster)].into(),
            complete: true,
        })
    };
    mesh.xds.send_replace(view(None));
    until_listed(&mesh.channel, "shop.Carts").await;
    for name in ["carts.shop", "shop.Carts"] {
        let mut client = HealthClient::new(mesh.channel.clone());
        let request = HealthCheckRequest {
            service: name.into(),
        };
        let check = tokio::spawn(async move { client.check(request).await });
        let used = tokio::time::timeout(Duration::from_secs(60), mesh.used.recv()).await;
        assert_eq!(used.unwrap().as_deref(), Some("carts.shop"));
        mesh.xds.send_replace(view(Some(Arc::new(xds::Assignment {
            endpoints: vec![remote()],
        }))));
        let answer = check.await.unwrap().unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
        mesh.xds.send_replace(view(None));
    }

    // A watch is a continuing use.
    let mut client = HealthClient::new(mesh.channel.clone());
    let request = HealthCheckRequest {
        service: "carts.shop".into(),
    };
    mesh.xds.send_replace(view(Some(Arc::default())));
    let mut steps = client.watch(request).await.unwrap().into_inner();
    // First by the previous table, then by the one without endpoints.
    while steps.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    for _ in 0..5 {
        let used = tokio::time::timeout(Duration::from_secs(60), mesh.used.recv()).await;
        assert_eq!(used.unwrap().as_deref(), Some("carts.shop"));
    }
}

fn remote() -> xds::Remote {
    xds::Remote {
        id: "i1".into(),
        node: "b".into(),
        version: "v1".into(),
        address: "10.0.0.2:7001".parse().unwrap(),
        inbound: "10.0.0.2:15008".parse().unwrap(),
        region: "".into(),
        zone: "".into(),
        weight: 1,
        health: crate::balance::endpoints::Health::Healthy,
    }
}
