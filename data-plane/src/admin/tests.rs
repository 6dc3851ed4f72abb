//! Reflection and health as grpcurl and health checkers see them.

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

fn source(name: &str, ready: usize, protos: &[&str], set: Bytes) -> Source {
    Source {
        set,
        protos: protos.iter().map(|&p| p.to_owned()).collect(),
        owned: Vec::new(),
        ready,
        name: name.into(),
    }
}

fn catalog_of(sources: Vec<Source>) -> Catalog {
    Catalog::build(sources, usize::MAX)
}

/// Issue 10, B2: reflection and routing agree on who owns a path.
#[test]
fn who_gets_the_calls_of_a_proto_service_explains_it_and_not_who_has_more_instances() {
    let schema = |message: &str| set(&[file("users.proto", "users", message, "Users", &[])]);
    let mut owner = source("users", 1, &["users.Users"], schema("User"));
    owner.owned = vec!["users.Users".to_owned()];
    let canary = source("canary", 5, &["users.Users"], schema("Member"));
    let catalog = catalog_of(vec![canary, owner]);
    let files = resolve(&catalog, "users.Users");
    let messages: Vec<_> = files.values().flat_map(|file| &file.message_type).collect();
    let names: Vec<_> = messages.iter().map(|message| message.name()).collect();
    assert_eq!(names, ["User"]);
}

/// What a client resolves from the answer: every file complete, every import present under the name that imports it.
fn resolve(catalog: &Catalog, symbol: &str) -> HashMap<String, FileDescriptorProto> {
    let start = catalog
        .file_of_symbol(symbol)
        .unwrap_or_else(|| panic!("{symbol} is not known"));
    let mut out = HashMap::new();
    for (name, bytes) in catalog.closure(start, usize::MAX) {
        assert!(bytes.ends_with(UNKNOWN_OPTION), "{name} lost an extension");
        let parsed = FileDescriptorProto::decode(bytes).unwrap();
        assert_eq!(parsed.name(), name);
        out.insert(name, parsed);
    }
    for file in out.values() {
        for import in &file.dependency {
            assert!(
                out.contains_key(import),
                "{} imports {import}, which is not there",
                file.name()
            );
        }
    }
    out
}

#[test]
fn equal_names_with_different_content_are_told_apart_and_imports_follow() {
    let users = set(&[
        file("common.proto", "common", "Old", "", &[]),
        file("users.proto", "users", "User", "Users", &["common.proto"]),
    ]);
    let orders = set(&[
        file("common.proto", "common", "New", "", &[]),
        file(
            "orders.proto",
            "orders",
            "Order",
            "Orders",
            &["common.proto"],
        ),
    ]);
    let catalog = catalog_of(vec![
        source("users.default", 1, &["users.Users"], users.clone()),
        source("orders.default", 3, &["orders.Orders"], orders),
    ]);
    // The files of the service with the most ready instances keep their names.
    let of_orders = resolve(&catalog, "orders.Orders");
    assert_eq!(of_orders["common.proto"].message_type[0].name(), "New");
    // The files of the other service are renamed, with the imports of them; names without a clash stay.
    let of_users = resolve(&catalog, "users.Users.Call");
    let renamed = of_users
        .keys()
        .find(|n| n.ends_with("/common.proto"))
        .expect("a renamed file");
    let prefix = renamed.strip_suffix("/common.proto").unwrap();
    assert!(
        prefix.len() == 8 && prefix.bytes().all(|b| b.is_ascii_hexdigit()),
        "{renamed}"
    );
    assert_eq!(of_users[renamed].message_type[0].name(), "Old");
    assert_eq!(
        of_users["users.proto"].dependency,
        std::slice::from_ref(renamed)
    );
    assert_eq!(of_users["users.proto"].service[0].method[0].name(), "Call");

    // Equal bytes are stored once.
    let twins = catalog_of(vec![
        source("a.x", 1, &[], users.clone()),
        source("b.x", 1, &[], users.clone()),
    ]);
    for raw in files(&users).unwrap() {
        assert_eq!(
            twins.file(&raw.outline.name).unwrap().bytes,
            raw.bytes,
            "byte for byte"
        );
    }
}

#[test]
fn what_a_file_imports_is_part_of_what_it_is() {
    // The same text has another meaning if its import differs.
    let api = || file("api.proto", "api", "Req", "Api", &["common.proto"]);
    let one = set(&[file("common.proto", "common", "Old", "", &[]), api()]);
    let two = set(&[file("common.proto", "common", "New", "", &[]), api()]);
    let catalog = catalog_of(vec![
        source("one.x", 2, &["api.Api"], one),
        source("two.x", 1, &["api.Api"], two),
    ]);
    let shown = resolve(&catalog, "api.Api");
    assert_eq!(
        shown["common.proto"].message_type[0].name(),
        "Old",
        "the schema of most ready instances"
    );
}

#[test]
fn who_implements_a_proto_service_explains_it() {
    // A caller with many instances contains an old copy of a service that another one implements.
    let old = set(&[file("users.proto", "users", "Old", "Users", &[])]);
    let new = set(&[file("users.proto", "users", "New", "Users", &[])]);
    let catalog = catalog_of(vec![
        source("web.default", 50, &["web.Web"], old),
        source("users.default", 1, &["users.Users"], new),
    ]);
    let shown = resolve(&catalog, "users.Users");
    assert_eq!(shown.len(), 1);
    assert_eq!(shown.values().next().unwrap().message_type[0].name(), "New");
}

/// Issue 10, D1: the memory of the catalogue is bounded, and a service that is left out is named with the reason.
#[test]
fn over_its_budget_the_services_with_the_fewest_instances_are_left_out() {
    let of = |name: &str| set(&[file(&format!("{name}.proto"), name, "M", "S", &[])]);
    let sources = vec![
        source("few.x", 1, &["few.S"], of("few")),
        source("many.x", 9, &["many.S"], of("many")),
        source("bad.x", 5, &["bad.S"], Bytes::from_static(b"\x0a\xff")),
    ];
    let cost = crate::agent::schema::files_at_cost(&of("many")).unwrap().1;
    let catalog = Catalog::build(sources, cost + cost / 2);
    assert!(catalog.file_of_symbol("many.S").is_some());
    assert_eq!(catalog.file_of_symbol("few.S"), None);
    let left_out: Vec<_> = catalog
        .left_out()
        .iter()
        .map(|one| (one.service.as_str(), one.why.as_str()))
        .collect();
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    let why = |name: &str| left_out.iter().find(|one| one.0 == name).unwrap().1;
    assert!(why("few.x").contains("of memory"), "{left_out:?}");
    assert!(why("bad.x").contains("FileDescriptorSet"), "{left_out:?}");
}

#[test]
fn extensions_are_found_by_number() {
    let mut one = file("x.proto", "x", "Options", "", &[]);
    one.extension.push(FieldDescriptorProto {
        name: Some("color".into()),
        extendee: Some(".x.Options".into()),
        number: Some(50001),
        ..Default::default()
    });
    let catalog = catalog_of(vec![source("x.x", 1, &[], set(&[one]))]);
    assert_eq!(catalog.extension_numbers("x.Options"), Some(vec![50001]));
    assert_eq!(
        catalog.file_of_extension("x.Options", 50001),
        Some("x.proto")
    );
    assert_eq!(catalog.file_of_symbol("x.color"), Some("x.proto"));
    assert_eq!(catalog.extension_numbers("x.Nobody"), None);
    assert_eq!(catalog.file_of_symbol("y.Nobody"), None);
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
        reflect::ask("127.0.0.1:1", &|_| {}).await,
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
        let asked = tokio::spawn(async move { client.check(request).await });
        let used = tokio::time::timeout(Duration::from_secs(60), mesh.used.recv()).await;
        assert_eq!(used.unwrap().as_deref(), Some("carts.shop"));
        mesh.xds.send_replace(view(Some(Arc::new(xds::Assignment {
            endpoints: vec![remote()],
        }))));
        let answer = asked.await.unwrap().unwrap().into_inner();
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

/// The admin port with one worker.
async fn admin(readiness: watch::Receiver<Readiness>) -> String {
    let (reports, _) = mpsc::channel(1);
    let (internal, _) = mpsc::channel(4);
    let options = crate::worker::WorkerOptions {
        node: "a".into(),
        ..Default::default()
    };
    let workers = Arc::new(crate::worker::Workers::start(options, reports, internal).unwrap());
    let agent = Agent::new("a");
    let (schemas, wanted) = Schemas::new();
    drop(schemas);
    let asker = xds::client::Asker {
        node: "a".into(),
        process_id: "p1".into(),
        region: String::new(),
        zone: String::new(),
    };
    let idle = Duration::from_secs(3600);
    let (_, xds) = xds::client::XdsClient::new(
        asker,
        vec![],
        Default::default(),
        xds::demand::Demand::new(Default::default(), idle, std::time::Instant::now()),
        Arc::default(),
        wanted,
        Arc::clone(&workers) as _,
    );
    let local_node = LocalNode {
        node: "a".into(),
        own_names: vec![],
        region: String::new(),
        zone: String::new(),
    };
    let (_, mesh) = TableBuilder::new(local_node, agent.clone(), xds.view.clone());
    let (_, session) = watch::channel(crate::agent::session::SessionStatus::Off);
    let (_, listeners) = watch::channel(std::collections::BTreeMap::new());
    let sources = super::http::Sources {
        options: vec![("control", "http://***@h:1".into())],
        workers,
        agent,
        mesh,
        xds,
        session,
        readiness: readiness.clone(),
        listeners,
        connections: Vec::new(),
        tasks: heddle_options::Tasks::default(),
    };
    let mut opened = serve::open(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = opened.pop().unwrap();
    let at = socket.address();
    let access = serve::Access {
        connections: heddle_listen::Connections::new("admin", heddle_listen::Limits::of(4)),
        guard: Arc::default(),
    };
    let grpc = serve::common(ProxyHealth::own(readiness), Reflection::admin());
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = super::http::serve(socket, access, Arc::new(sources), grpc, stop);
    tokio::spawn(serving);
    at.to_string()
}

/// One HTTP/1.1 request on its own connection; returns status and body.
async fn http(addr: &str, method: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_admin_port_speaks_http_and_grpc() {
    let (tell, readiness) = readiness::channel();
    let addr = admin(readiness).await;
    tell.send_replace(Readiness::Starting("the test has not begun"));
    let (status, body) = http(&addr, "GET", "/readyz").await;
    assert_eq!(
        (status, body.contains("the test has not begun")),
        (503, true),
        "{body}"
    );
    tell.send_replace(Readiness::Ready);
    assert_eq!(http(&addr, "GET", "/readyz").await, (200, "ready\n".into()));
    tell.send_replace(Readiness::Draining);
    assert_eq!(http(&addr, "GET", "/readyz").await.0, 503);
    assert_eq!(http(&addr, "GET", "/healthz").await.0, 200);
    assert_eq!(http(&addr, "GET", "/nowhere").await.0, 404);
    assert_eq!(http(&addr, "POST", "/config").await.0, 405);
    let (status, metrics) = http(&addr, "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(
        metrics.lines().any(|line| line == "heddle_ready 0"),
        "{metrics}"
    );
    let (_, config) = http(&addr, "GET", "/config").await;
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["node"], "a");
    assert_eq!(config["options"]["control"], "http://***@h:1");

    let channel = Channel::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(
        answer.into_inner().status(),
        ServingStatus::NotServing,
        "it drains"
    );
    assert!(
        listed(&channel)
            .await
            .contains(&"grpc.health.v1.Health".to_owned())
    );
}
