//! How the agent handles servers whose reflection answers well, badly, slowly or not at all. The servers are scripted:
//! real gRPC over real sockets, with answers that the test chooses.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use heddle_proto::registry::v1::{Health, HealthCheck, Instance, health_check::Kind};
use prost::{Message as _, bytes::Bytes};
use prost_types::{
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, MethodOptions,
    ServiceDescriptorProto, method_options::IdempotencyLevel,
};
use tokio::sync::mpsc;
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
    server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use crate::agent::{
    Agent, InstanceFailure,
    instance_table::{View, Views},
    key::InstanceKey,
    restarts::Watcher,
    tests::{checked, free_address, instance, listener, until},
    validate::{Origin, check},
};

/// How a server answers.
#[derive(Clone, Default)]
struct Script {
    lists: Vec<&'static str>,
    file: Option<FileDescriptorProto>,
    /// Sent instead of any answer.
    status: Option<Code>,
    /// Requests for descriptors get no answer.
    hangs: bool,
    /// Ends the stream with this status for an unknown symbol.
    unknown: Option<Code>,
    /// Answers the request for an unknown symbol with this error; default: NOT_FOUND.
    denies: Option<Code>,
}

#[derive(Clone, Default)]
struct Server {
    script: Arc<Mutex<Script>>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ServerReflection for Server {
    type ServerReflectionInfoStream = Answers;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Answers>, Status> {
        if let Some(code) = self.script.lock().unwrap().status {
            return Err(Status::new(code, "as the script has it"));
        }
        let (answers, stream) = mpsc::channel(4);
        let script = Arc::clone(&self.script);
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let script = script.lock().unwrap().clone();
                let Some(answer) = script.answer(request) else {
                    // Keeps the stream open without an answer until the client gives up.
                    return answers.closed().await;
                };
                let _ = answers.send(answer).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Script {
    fn answer(
        &self,
        request: ServerReflectionRequest,
    ) -> Option<Result<ServerReflectionResponse, Status>> {
        let query = request.message_request.unwrap();
        let file = self.file.as_ref().filter(|file| match &query {
            MessageRequest::FileContainingSymbol(symbol) => file
                .service
                .iter()
                .any(|service| *symbol == format!("{}.{}", file.package(), service.name())),
            _ => false,
        });
        let message = match (&query, file) {
            (MessageRequest::ListServices(_), _) => {
                let all = self.lists.iter().map(|&name| name.to_owned());
                let service = all.map(|name| ServiceResponse { name }).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
            _ if self.hangs => return None,
            (_, Some(file)) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                file_descriptor_proto: vec![file.encode_to_vec()],
            }),
            (_, None) => match self.unknown {
                Some(code) => return Some(Err(Status::new(code, "unknown"))),
                None => MessageResponse::ErrorResponse(ErrorResponse {
                    error_code: self.denies.unwrap_or(Code::NotFound).into(),
                    error_message: "unknown".into(),
                }),
            },
        };
        Some(Ok(ServerReflectionResponse {
            message_response: Some(message),
            ..Default::default()
        }))
    }
}

impl Server {
    fn of(script: Script) -> Self {
        Self {
            script: Arc::new(Mutex::new(script)),
        }
    }

    fn now(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// Starts it on a free port.
    async fn start(&self) -> SocketAddr {
        let (listener, addr) = listener().await;
        self.serve(listener, &CancellationToken::new());
        addr
    }

    fn serve(
        &self,
        listener: tokio::net::TcpListener,
        stop: &CancellationToken,
    ) -> tokio::task::JoinHandle<()> {
        let (_, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder()
            .add_service(health)
            .add_service(ServerReflectionServer::new(self.clone()));
        let incoming = TcpListenerStream::new(listener);
        let stop = stop.clone();
        // Connections are cut, not drained, as when a process dies.
        tokio::spawn(async move {
            stop.run_until_cancelled(server.serve_with_incoming(incoming))
                .await;
        })
    }
}

/// `shop.proto` with these services of the package `shop`; the method `Get` of each has no side effects.
fn shop(services: &[&str]) -> FileDescriptorProto {
    let service = |name: &&str| ServiceDescriptorProto {
        name: Some((*name).to_owned()),
        method: vec![MethodDescriptorProto {
            name: Some("Get".into()),
            options: Some(MethodOptions {
                idempotency_level: Some(IdempotencyLevel::NoSideEffects.into()),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    };
    FileDescriptorProto {
        name: Some("shop.proto".into()),
        package: Some("shop".into()),
        service: services.iter().map(service).collect(),
        ..Default::default()
    }
}

fn unnamed(addr: SocketAddr) -> Instance {
    Instance {
        protos: vec![],
        ..instance("shop", "s1", &addr.to_string())
    }
}

fn one(agent: &Agent) -> (InstanceKey, Arc<View>) {
    agent.views().1.into_iter().next().unwrap()
}

/// Waits until the instance serves exactly these.
async fn serves(agent: &Agent, expect: &[&str]) {
    until(agent, &format!("{expect:?}"), |views: &Views| {
        let view = views.values().next().unwrap();
        view.protos
            .iter()
            .map(|proto| proto.name.as_str())
            .eq(expect.iter().copied())
    })
    .await;
}

async fn reason(agent: &Agent, part: &str) {
    until(agent, part, |views: &Views| {
        views.values().all(|view| view.schema_reason.contains(part))
    })
    .await;
}

/// Issue 10, B1: a server lists one service whose file defines three, and another one without descriptors.
#[tokio::test]
async fn what_reflection_lists_is_served_and_other_services_of_its_files_are_not() {
    for unknown in [None, Some(Code::NotFound)] {
        let server = Server::of(Script {
            lists: vec!["grpc.health.v1.Health", "shop.Cart", "plain.Unknown"],
            file: Some(shop(&["Ads", "Cart", "Currency"])),
            unknown,
            ..Script::default()
        });
        let agent = Agent::new("a");
        agent
            .register(checked(unnamed(server.start().await)))
            .unwrap();
        serves(&agent, &["plain.Unknown", "shop.Cart"]).await;
        reason(&agent, "has no descriptors of plain.Unknown").await;
        let (_, view) = one(&agent);
        assert_eq!(view.protos[1].idempotent_methods, ["Get"]);
        let schema = view.schema.as_ref().expect("of what it has");
        assert!(
            schema.services().contains_key("shop.Ads"),
            "it is schema all the same"
        );
    }
}

/// Issue 10, B1: a server that lists its services but does not give their files is not said to have none.
#[tokio::test]
async fn a_refusal_of_descriptors_is_shown_with_its_code_and_text() {
    let refusals = [
        (Some(Code::PermissionDenied), None),
        (None, Some(Code::PermissionDenied)),
    ];
    for (denies, unknown) in refusals {
        let server = Server::of(Script {
            lists: vec!["shop.Cart"],
            denies,
            unknown,
            ..Script::default()
        });
        let agent = Agent::new("a");
        agent
            .register(checked(unnamed(server.start().await)))
            .unwrap();
        let words = "its server reflection answers PERMISSION_DENIED to the request for the \
            descriptors of shop.Cart (\"unknown\"): give its descriptors";
        until(&agent, "a reason", |views| {
            views.values().all(|view| !view.schema_reason.is_empty())
        })
        .await;
        let (_, view) = one(&agent);
        assert!(view.schema_reason.contains(words), "{}", view.schema_reason);
        serves(&agent, &["shop.Cart"]).await;
    }
}

/// Issue 10, B1: `protos:` and `--proto` add to reflection.
#[tokio::test]
async fn named_proto_services_are_served_beside_those_that_are_listed() {
    let server = Server::of(Script {
        lists: vec!["shop.Cart"],
        file: Some(shop(&["Cart"])),
        ..Script::default()
    });
    let agent = Agent::new("a");
    let named = Instance {
        protos: vec!["shop.Named".into()],
        ..unnamed(server.start().await)
    };
    agent.register(checked(named)).unwrap();
    serves(&agent, &["shop.Cart", "shop.Named"]).await;
    until(&agent, "descriptors", |views| {
        views.values().all(|view| view.schema.is_some())
    })
    .await;
}

/// Issue 10, B1: the status shows each way in which reflection fails, with the remedy.
#[tokio::test]
async fn the_status_says_why_reflection_gave_nothing() {
    for (status, words) in [
        (
            Code::Unimplemented,
            "it has no gRPC server reflection: name its proto services",
        ),
        (
            Code::Unauthenticated,
            "its server reflection answers UNAUTHENTICATED: name",
        ),
        (
            Code::PermissionDenied,
            "its server reflection answers PERMISSION_DENIED: name",
        ),
    ] {
        let server = Server::of(Script {
            status: Some(status),
            ..Script::default()
        });
        let agent = Agent::new("a");
        agent
            .register(checked(unnamed(server.start().await)))
            .unwrap();
        reason(&agent, words).await;
        let (_, view) = one(&agent);
        assert_eq!(view.health, Health::Healthy, "it is called by authority");
        assert!(
            view.reason.is_empty(),
            "its health has no fault: {}",
            view.reason
        );
    }
    let server = Server::of(Script {
        lists: vec!["grpc.health.v1.Health"],
        ..Script::default()
    });
    let agent = Agent::new("a");
    agent
        .register(checked(unnamed(server.start().await)))
        .unwrap();
    reason(&agent, "lists no service of its own").await;
}

/// Issue 10, B1: calls find a service whose descriptors hang, and the status shows that they do.
#[tokio::test]
async fn names_are_known_before_slow_descriptors_and_stay_when_these_do_not_come() {
    let server = Server::of(Script {
        lists: vec!["shop.Cart"],
        hangs: true,
        ..Script::default()
    });
    let agent = Agent::new("a");
    agent
        .register(checked(unnamed(server.start().await)))
        .unwrap();
    serves(&agent, &["shop.Cart"]).await;
    assert_eq!(one(&agent).1.schema_reason, "", "it is still being queried");
    reason(&agent, "gives no answer within 5 s").await;
    serves(&agent, &["shop.Cart"]).await;
}

/// Issue 10, B1: another program at the old address, in every way in which the agent may notice it.
#[tokio::test]
async fn an_instance_that_was_away_is_queried_again_and_its_earlier_answer_stays_meanwhile() {
    for kind in [Kind::KeepAlive, Kind::Tcp] {
        let server = Server::of(Script {
            lists: vec!["shop.Ads", "shop.Cart"],
            file: Some(shop(&["Ads", "Cart"])),
            ..Script::default()
        });
        let (listener, stop) = (
            tokio::net::TcpListener::bind(free_address().await)
                .await
                .unwrap(),
            CancellationToken::new(),
        );
        let addr = listener.local_addr().unwrap();
        let serving = server.serve(listener, &stop);
        let agent = Agent::new("a");
        let check = HealthCheck {
            kind: kind.into(),
            interval: prost_types::Duration::try_from(Duration::from_millis(50)).ok(),
            ..HealthCheck::default()
        };
        let checked = checked(Instance {
            health: Some(check),
            ..unnamed(addr)
        });
        agent.register(checked).unwrap();
        serves(&agent, &["shop.Ads", "shop.Cart"]).await;

        stop.cancel();
        serving.await.unwrap();
        let (key, _) = one(&agent);
        if kind == Kind::KeepAlive {
            agent.report_failure(&key, InstanceFailure::Refused);
        }
        until(&agent, "away", |views| {
            views.values().all(|view| view.health == Health::Unhealthy)
        })
        .await;
        serves(&agent, &["shop.Ads", "shop.Cart"]).await;
        server.now(|script| {
            script.lists = vec!["shop.Cart", "shop.New"];
            script.file = Some(shop(&["Cart", "New"]));
        });
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        server.serve(listener, &CancellationToken::new());
        serves(&agent, &["shop.Cart", "shop.New"]).await;

        // A restart between two checks: only the connection of a call broke.
        server.now(|script| script.lists = vec!["shop.New"]);
        agent.report_failure(&key, InstanceFailure::Lost);
        serves(&agent, &["shop.New"]).await;

        // Then a program whose reflection fails: what was known is kept.
        server.now(|script| script.status = Some(Code::Unauthenticated));
        agent.report_failure(&key, InstanceFailure::Lost);
        reason(&agent, "UNAUTHENTICATED; its earlier answer stays in use").await;
        serves(&agent, &["shop.New"]).await;
        server.now(|script| script.status = None);
        until(&agent, "well again", |views| {
            views.values().all(|view| view.schema_reason.is_empty())
        })
        .await;
    }
}

/// Issue 10, B1: a restart between two checks, while no call has a connection.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_program_that_restarts_quickly_and_unnoticed_is_queried_again() {
    for kind in [Kind::Tcp, Kind::Grpc, Kind::None, Kind::KeepAlive] {
        let server = Server::of(Script {
            lists: vec!["shop.Old"],
            ..Script::default()
        });
        let (listener, stop) = (
            tokio::net::TcpListener::bind(free_address().await)
                .await
                .unwrap(),
            CancellationToken::new(),
        );
        let addr = listener.local_addr().unwrap();
        let serving = server.serve(listener, &stop);
        let agent = Agent::new("a");
        let check = HealthCheck {
            kind: kind.into(),
            interval: prost_types::Duration::try_from(Duration::from_secs(3600)).ok(),
            ..HealthCheck::default()
        };
        let checked = checked(Instance {
            health: Some(check),
            ..unnamed(addr)
        });
        agent.register(checked).unwrap();
        serves(&agent, &["shop.Old"]).await;
        let mut watcher = Watcher::new(agent.clone());
        watcher.look().await;

        stop.cancel();
        serving.await.unwrap();
        server.now(|script| script.lists = vec!["shop.New"]);
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        server.serve(listener, &CancellationToken::new());
        watcher.look().await;
        serves(&agent, &["shop.New"]).await;
    }
}

/// Issue 10, B1: whoever rewrites a services file may have changed the programs that it names.
#[tokio::test]
async fn a_rewritten_services_file_has_its_instances_queried_again() {
    let server = Server::of(Script {
        lists: vec!["shop.Ads"],
        file: Some(shop(&["Ads", "Cart"])),
        ..Script::default()
    });
    let addr = server.start().await;
    let agent = Agent::new("a");
    let wanted = || vec![check(unnamed(addr), &Bytes::new(), Origin::File, &|_| true).unwrap()];
    agent.set_file("shop.yaml".as_ref(), wanted()).unwrap();
    serves(&agent, &["shop.Ads"]).await;
    server.now(|script| script.lists = vec!["shop.Cart"]);
    agent.set_file("shop.yaml".as_ref(), wanted()).unwrap();
    serves(&agent, &["shop.Cart"]).await;
}

/// Issue 10, B1: for programs without reflection.
#[tokio::test]
async fn given_descriptors_stand_in_for_reflection() {
    let server = Server::of(Script {
        status: Some(Code::Unimplemented),
        ..Script::default()
    });
    let agent = Agent::new("a");
    let set = FileDescriptorSet {
        file: vec![shop(&["Ads", "Cart"])],
    };
    let set: Bytes = set.encode_to_vec().into();
    let addr = server.start().await;
    let given = check(unnamed(addr), &set, Origin::Registration, &|_| true).unwrap();
    agent.register(given).unwrap();
    serves(&agent, &["shop.Ads", "shop.Cart"]).await;
    // If a later version has reflection, reflection counts.
    server.now(|script| {
        script.status = None;
        script.lists = vec!["shop.Cart"];
    });
    agent.report_failure(&one(&agent).0, InstanceFailure::Lost);
    serves(&agent, &["shop.Cart"]).await;
    let (_, view) = one(&agent);
    assert_eq!(view.schema.as_ref().unwrap().bytes, set, "byte for byte");
    assert_eq!(view.schema_reason, "", "nothing is missing");
}
