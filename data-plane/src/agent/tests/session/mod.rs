mod removals;

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::Stream;
use heddle_proto::control::v1::{
    Ack, Change, ControlMessage, GoneInstance, Hello, InstanceRef, NodeMessage, Rejection,
    RemovalAnswer, Welcome, ack, control_message, node_message,
    node_session_server::{NodeSession, NodeSessionServer},
};
use heddle_proto::registry::v1::{Health, Instance, Protocol};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{checked, instance, listener, soon, until};
use crate::agent::{
    Agent,
    instance_table::{Refused, Views},
    removal_log::Cause,
    session::{Identity, Session, SessionHandle, SessionStatus},
    validate::{Origin, check},
};

type Answers = Pin<Box<dyn Stream<Item = Result<ControlMessage, Status>> + Send>>;

/// The control plane's side of one session.
struct Visit {
    messages: Streaming<NodeMessage>,
    answers: mpsc::Sender<Result<ControlMessage, Status>>,
}

/// A control plane whose every message the test sends.
struct Control {
    visits: mpsc::Sender<Visit>,
}

#[tonic::async_trait]
impl NodeSession for Control {
    type OpenStream = Answers;

    async fn open(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Answers>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let visit = Visit {
            messages: request.into_inner(),
            answers,
        };
        self.visits
            .send(visit)
            .await
            .map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn control() -> (SocketAddr, mpsc::Receiver<Visit>) {
    let (visits, received) = mpsc::channel(4);
    let (listener, addr) = listener().await;
    let server =
        tonic::transport::Server::builder().add_service(NodeSessionServer::new(Control { visits }));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (addr, received)
}

impl Visit {
    async fn next(&mut self) -> node_message::Message {
        loop {
            let message = soon("a message", self.messages.message())
                .await
                .unwrap()
                .unwrap()
                .message
                .unwrap();
            if !matches!(message, node_message::Message::Beat(_)) {
                return message;
            }
        }
    }

    async fn hello(&mut self) -> Hello {
        match self.next().await {
            node_message::Message::Hello(hello) => hello,
            other => panic!("{other:?} instead of Hello"),
        }
    }

    async fn say(&self, message: control_message::Message) {
        self.answers
            .send(Ok(ControlMessage {
                message: Some(message),
            }))
            .await
            .unwrap();
    }

    async fn welcome(&self, epoch: u64, missing: &[String]) {
        self.welcome_for(Duration::from_secs(10), epoch, missing)
            .await;
    }

    async fn welcome_for(&self, lease: Duration, epoch: u64, missing: &[String]) {
        self.say(control_message::Message::Welcome(Welcome {
            epoch,
            lease_ttl: prost_types::Duration::try_from(lease).ok(),
            renew_interval: Some(prost_types::Duration {
                seconds: 0,
                nanos: 50_000_000,
            }),
            revision: 7,
            missing_schemas: missing.to_vec(),
            replica: "test".into(),
            rejected: vec![],
        }))
        .await;
    }

    async fn acknowledge(&self, sequence: u64) {
        let ack = Ack {
            of: Some(ack::Of::Change(sequence)),
            revision: 8,
            ..Ack::default()
        };
        self.say(control_message::Message::Ack(ack)).await;
    }
}

fn start(agent: &Agent, urls: Vec<String>) -> SessionHandle {
    let identity = Identity {
        node: "a".into(),
        process_id: "p1".into(),
        advertise: "127.0.0.1:15008".into(),
        region: "eu".into(),
        zone: "eu-1".into(),
    };
    let (session, handle) =
        Session::new(agent.clone(), identity, urls, Arc::new(AtomicU64::new(3)));
    tokio::spawn(session.run());
    handle
}

/// Starts the agent's session; returns its handle, and the control plane's sides of the sessions to come and of this one.
async fn opened(agent: &Agent) -> (SessionHandle, mpsc::Receiver<Visit>, Visit) {
    let (addr, mut visits) = control().await;
    let handle = start(agent, vec![format!("http://{addr}")]);
    let visit = soon("a session", visits.recv()).await.unwrap();
    (handle, visits, visit)
}

async fn next_change(visit: &mut Visit) -> Change {
    match visit.next().await {
        node_message::Message::Change(change) => change,
        other => panic!("{other:?} instead of Change"),
    }
}

fn ids(hello: &Hello) -> Vec<&str> {
    hello
        .instances
        .iter()
        .map(|i| i.instance.as_ref().unwrap().id.as_str())
        .collect()
}

#[tokio::test]
async fn the_full_set_goes_with_hello_then_every_change() {
    let agent = Agent::new("a");
    agent
        .register(checked(instance("echo", "e1", "127.0.0.1:1")))
        .unwrap();
    let (handle, mut visits, mut visit) = opened(&agent).await;
    let hello = visit.hello().await;
    assert_eq!(
        (hello.node.as_str(), hello.process_id.as_str(), hello.epoch),
        ("a", "p1", 0)
    );
    assert_eq!(
        (
            hello.advertise.as_str(),
            hello.region.as_str(),
            hello.revision
        ),
        ("127.0.0.1:15008", "eu", 3)
    );
    assert_eq!(ids(&hello), ["e1"]);
    visit.welcome(41, &[]).await;

    let second = agent
        .register(checked(instance("echo", "e2", "127.0.0.1:2")))
        .unwrap();
    let change = next_change(&mut visit).await;
    assert_eq!(
        (change.sequence, change.upserted.len(), change.removed.len()),
        (1, 1, 0)
    );
    // Not acknowledged yet: what happens meanwhile goes into one later Change.
    agent.deregister(&second).unwrap();
    agent
        .register(checked(instance("echo", "e3", "127.0.0.1:3")))
        .unwrap();
    visit.acknowledge(1).await;
    let change = next_change(&mut visit).await;
    assert_eq!(change.sequence, 2);
    assert_eq!(change.upserted[0].instance.as_ref().unwrap().id, "e3");
    assert_eq!(change.removed[0].id, "e2");

    // The connection breaks: the same process returns with its epoch and all its instances.
    drop(visit);
    let mut visit = soon("a second session", visits.recv()).await.unwrap();
    let hello = visit.hello().await;
    assert_eq!((hello.epoch, hello.revision), (41, 8));
    assert_eq!(ids(&hello), ["e1", "e3"]);
    visit.welcome(41, &[]).await;
    let mut status = handle.status();
    soon(
        "connected",
        status.wait_for(|s| *s == SessionStatus::Connected("test".into())),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn descriptors_are_sent_when_they_are_missed() {
    let agent = Agent::new("a");
    let set = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let one = check(
        instance("echo", "e1", "127.0.0.1:1"),
        &set,
        Origin::Registration,
        &|_| true,
    )
    .unwrap();
    agent.register(one).unwrap();
    let (_, _visits, mut visit) = opened(&agent).await;
    let sha256 = visit.hello().await.instances[0].schema_sha256.clone();
    visit.welcome(1, &["0".repeat(64), sha256.clone()]).await;
    let node_message::Message::Schema(upload) = visit.next().await else {
        panic!("no upload")
    };
    assert_eq!(upload.sha256, sha256);
    assert_eq!(upload.file_descriptor_set, set);
}

#[tokio::test]
async fn a_superseded_process_says_so_and_serves_on() {
    let agent = Agent::new("a");
    agent
        .register(checked(instance("echo", "e1", "127.0.0.1:1")))
        .unwrap();
    let (handle, _visits, mut visit) = opened(&agent).await;
    visit.hello().await;
    visit.welcome(1, &[]).await;
    let mut details = ErrorDetails::new();
    details.set_error_info("SUPERSEDED", "heddle", std::collections::HashMap::new());
    let status = Status::with_error_details(Code::Aborted, "process p2 has taken node a", details);
    visit.answers.send(Err(status)).await.unwrap();
    let mut status = handle.status();
    soon(
        "superseded",
        status.wait_for(|s| matches!(s, SessionStatus::Superseded(by) if by.contains("p2"))),
    )
    .await
    .unwrap();
    assert_eq!(agent.views().1.len(), 1);
}

#[tokio::test]
async fn another_replica_is_tried_when_one_is_down() {
    let (addr, mut visits) = control().await;
    let dead = super::free_address().await;
    let agent = Agent::new("a");
    start(
        &agent,
        vec![format!("http://{dead}"), format!("http://{addr}")],
    );
    soon("a session with the living one", visits.recv())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_silent_replica_is_left_while_the_lease_still_holds() {
    let (addr, mut visits) = control().await;
    let agent = Agent::new("a");
    let urls = vec![format!("http://{addr}")];
    start(&agent, urls);
    let mut first = visits.recv().await.unwrap();
    first.hello().await;
    // Long enough to measure the wait and not the machine.
    let lease = Duration::from_secs(6);
    first.welcome_for(lease, 1, &[]).await;
    let welcomed = std::time::Instant::now();
    // The old connection stays open and takes beats, but never answers.
    let mut second = soon("a second session", visits.recv()).await.unwrap();
    assert!(welcomed.elapsed() < lease, "the lease had lapsed");
    assert!(welcomed.elapsed() >= lease / 2, "it was given no time");
    assert_eq!(second.hello().await.epoch, 1);
}

#[tokio::test]
async fn without_any_session_yet_a_removal_is_answered_at_once() {
    let agent = Agent::new("a");
    let registration = agent
        .register(checked(instance("echo", "e1", "127.0.0.1:1")))
        .unwrap();
    let handle = start(
        &agent,
        vec![format!("http://{}", super::free_address().await)],
    );
    let (key, version) = agent.deregister(&registration).unwrap();
    let began = std::time::Instant::now();
    let answer = handle.removal(&key, version, Duration::from_secs(60)).await;
    assert!(!answer.acknowledged && answer.unacknowledged[0].contains("not connected"));
    assert!(began.elapsed() < Duration::from_secs(30));
}

fn rejection(id: &str) -> Rejection {
    Rejection {
        instance: Some(InstanceRef {
            service: "echo".into(),
            namespace: "default".into(),
            id: id.into(),
        }),
        field: "instance.protocol".into(),
        description: "77 is no protocol".into(),
    }
}

fn upserted(change: &Change) -> Vec<&str> {
    let instances = change.upserted.iter();
    instances
        .map(|it| it.instance.as_ref().unwrap().id.as_str())
        .collect()
}

const REFUSED: &str = "refused by the control plane: instance.protocol: 77 is no protocol";

/// An instance without reflection, whose results would be further changes.
fn plain(id: &str, port: u16) -> Instance {
    Instance {
        protocol: Protocol::Http.into(),
        ..instance("echo", id, &format!("127.0.0.1:{port}"))
    }
}

/// Issue 10, B3: the others are used, the rejected instance shows why it is not, and it is not sent again unchanged.
#[tokio::test]
async fn what_the_control_plane_rejects_is_out_and_sent_again_only_when_it_changes() {
    let agent = Agent::new("a");
    for (id, port) in [("bad", 1), ("good", 2)] {
        let checked = checked(plain(id, port));
        agent.register(checked).unwrap();
    }
    let (_handle, mut visits, mut visit) = opened(&agent).await;
    assert_eq!(ids(&visit.hello().await), ["bad", "good"]);
    let welcome = |rejected| {
        control_message::Message::Welcome(Welcome {
            epoch: 1,
            rejected,
            ..Welcome::default()
        })
    };
    visit.say(welcome(vec![rejection("bad")])).await;
    let of = |views: &Views, id: &str| {
        let mut found = views.iter().filter(|(key, _)| key.id == id);
        let (_, view) = found.next().unwrap();
        (view.health, view.reason.clone())
    };
    until(&agent, "it is refused", |views| {
        of(views, "bad") == (Health::Unhealthy, REFUSED.to_owned())
    })
    .await;
    assert_eq!(of(&agent.views().1, "good").0, Health::Healthy);
    // A check result and another change: it is not sent.
    let (key, view) = {
        let (_, views) = agent.views();
        let (key, view) = views.iter().next().unwrap();
        (key.clone(), Arc::clone(view))
    };
    agent.set_health(&key, &view.registration, Health::Healthy, "");
    assert_eq!(of(&agent.views().1, "bad").0, Health::Unhealthy);
    agent.register(checked(plain("third", 3))).unwrap();
    let first = next_change(&mut visit).await;
    assert_eq!(upserted(&first), ["third"]);
    visit.acknowledge(1).await;
    // The instance changes: it is sent, and rejected again.
    let mut other = plain("bad", 4);
    other.version = "v2".into();
    agent.register(checked(other)).unwrap();
    let second = next_change(&mut visit).await;
    assert_eq!(upserted(&second), ["bad"]);
    visit
        .say(control_message::Message::Ack(Ack {
            of: Some(ack::Of::Change(2)),
            rejected: vec![rejection("bad")],
            ..Ack::default()
        }))
        .await;
    until(&agent, "it is refused again", |views| {
        of(views, "bad") == (Health::Unhealthy, REFUSED.to_owned())
    })
    .await;
    // Now it is accepted, and has the health that it reports itself.
    agent.register(checked(plain("bad", 5))).unwrap();
    assert_eq!(upserted(&next_change(&mut visit).await), ["bad"]);
    visit.acknowledge(3).await;
    until(&agent, "it is healthy", |views| {
        of(views, "bad").0 == Health::Healthy
    })
    .await;
    // The answer to a beat rejects an instance that was accepted before: the next session sends it again.
    visit
        .say(control_message::Message::Ack(Ack {
            of: Some(ack::Of::Beat(1)),
            rejected: vec![rejection("good")],
            ..Ack::default()
        }))
        .await;
    until(&agent, "the other is refused", |views| {
        of(views, "good").0 == Health::Unhealthy
    })
    .await;
    drop(visit);
    let mut visit = soon("a new session", visits.recv()).await.unwrap();
    assert_eq!(ids(&visit.hello().await), ["bad", "good", "third"]);
    visit.say(welcome(vec![])).await;
    until(&agent, "all are taken", |views| {
        views.values().all(|view| view.health == Health::Healthy)
    })
    .await;
}
