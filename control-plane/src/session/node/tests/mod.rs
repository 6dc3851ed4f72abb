use std::sync::atomic::Ordering;

use heddle_proto::control::v1::{
    Beat, Change, GoneInstance, Hello, InstanceRef, Leave, LocalInstance,
};
use tonic_types::StatusExt as _;

use super::{
    super::fixture::{Peer, RecordedQueries, hello, serve},
    *,
};
use crate::{
    registry::fixture::{Fixture, Replicas, instance, names, until, within},
    store::Revision,
};

mod questions;
mod rejections;

use control_message::Message as Down;
use node_message::Message as Up;

struct Mesh {
    fixture: Fixture,
    server: std::net::SocketAddr,
    queries: Arc<RecordedQueries>,
}

impl Mesh {
    async fn new() -> Self {
        Self::over(Fixture::new().await).await
    }

    async fn over(fixture: Fixture) -> Self {
        let queries = Arc::new(RecordedQueries::default());
        let server = serve(&fixture.registry, &queries).await;
        Self {
            fixture,
            server,
            queries,
        }
    }

    async fn names_at(&self, revision: u64) -> Vec<String> {
        within(self.fixture.registry.reached(Revision(revision))).await;
        self.fixture.registry.read(names)
    }
}

fn upsert(sequence: u64, name: &str) -> Up {
    Up::Change(Change {
        sequence,
        upserted: vec![instance("a", name).1],
        removed: vec![],
    })
}

fn remove(sequence: u64, service: &str, id: &str) -> Up {
    Up::Change(Change {
        sequence,
        upserted: vec![],
        removed: vec![gone(service, id, "")],
    })
}

fn gone(service: &str, id: &str, cause: &str) -> GoneInstance {
    GoneInstance {
        service: service.into(),
        id: id.into(),
        namespace: String::new(),
        cause: cause.into(),
    }
}

fn reference(service: &str, id: &str) -> InstanceRef {
    InstanceRef {
        service: service.into(),
        id: id.into(),
        namespace: String::new(),
    }
}

async fn ack(peer: &mut Peer) -> Ack {
    match peer.next().await.unwrap() {
        Down::Ack(ack) => ack,
        other => panic!("no Ack but {other:?}"),
    }
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

#[tokio::test]
async fn a_session_from_hello_to_leave() {
    let mesh = Mesh::new().await;
    let set = vec![instance("a", "users/u1").1, instance("a", "shop/s1").1];
    let (mut peer, welcome) = Peer::open(mesh.server, hello("a", "p1", set)).await;
    assert_eq!((welcome.epoch, welcome.replica.as_str()), (1, "control"));
    assert_eq!(welcome.lease_ttl.unwrap().seconds, 600);
    assert_eq!(welcome.renew_interval.unwrap().seconds, 200);
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/shop.default/s1", "a/users.default/u1"]
    );
    assert!(
        mesh.fixture
            .registry
            .read(|view| view.node("a").unwrap().loopback)
    );

    peer.send(upsert(1, "users/u2")).await;
    let first = ack(&mut peer).await;
    assert_eq!(first.of, Some(ack::Of::Change(1)));
    peer.send(remove(2, "users", "u1")).await;
    let second = ack(&mut peer).await;
    assert!(second.revision > first.revision);
    assert_eq!(
        mesh.names_at(second.revision).await,
        ["a/shop.default/s1", "a/users.default/u2"]
    );
    peer.send(Up::Beat(Beat { sequence: 7 })).await;
    assert_eq!(ack(&mut peer).await.of, Some(ack::Of::Beat(7)));

    peer.send(Up::Leave(Leave {})).await;
    assert_eq!(peer.end().await.code(), tonic::Code::Ok);
    mesh.fixture
        .until(|view| names(view).is_empty() && !view.node("a").unwrap().alive)
        .await;
}

#[tokio::test]
async fn changes_that_wait_together_are_each_acknowledged_and_the_last_counts() {
    let mesh = Mesh::new().await;
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    for sequence in (1..100).step_by(2) {
        peer.send(upsert(sequence, &format!("users/u{sequence}")))
            .await;
        peer.send(remove(sequence + 1, "users", &format!("u{sequence}")))
            .await;
    }
    peer.send(upsert(101, "users/last")).await;
    let mut revision = 0;
    for sequence in 1..=101 {
        let ack = ack(&mut peer).await;
        assert_eq!(ack.of, Some(ack::Of::Change(sequence)));
        assert!(ack.revision >= revision);
        revision = ack.revision;
    }
    assert_eq!(mesh.names_at(revision).await, ["a/users.default/last"]);
}

#[tokio::test]
async fn a_newer_process_takes_over_and_the_older_learns_by_whom() {
    let mesh = Mesh::new().await;
    let (mut old, _) = Peer::open(
        mesh.server,
        hello("a", "p1", vec![instance("a", "users/u1").1]),
    )
    .await;
    let (mut new, welcome) = Peer::open(
        mesh.server,
        hello("a", "p2", vec![instance("a", "users/u2").1]),
    )
    .await;
    assert_eq!(welcome.epoch, 2);
    let status = old.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (tonic::Code::Aborted, "SUPERSEDED".into())
    );
    let details = status.get_details_error_info().unwrap();
    assert_eq!(
        (
            details.domain.as_str(),
            details.metadata["process_id"].as_str()
        ),
        ("heddle", "p2")
    );
    assert_eq!(details.metadata["epoch"], "2");

    let mut back = Peer::connect(mesh.server).await;
    let known = Hello {
        epoch: 1,
        ..hello("a", "p1", vec![])
    };
    back.send(Up::Hello(known)).await;
    assert_eq!(reason(&back.end().await), "SUPERSEDED");
    new.send(Up::Beat(Beat { sequence: 1 })).await;
    assert_eq!(ack(&mut new).await.of, Some(ack::Of::Beat(1)));
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/users.default/u2"]
    );
}

/// Issue 10, D2: it was accepted, and the next process of the node would have started at 0.
#[tokio::test]
async fn an_epoch_that_nobody_gave_is_refused_and_changes_nothing() {
    let mesh = Mesh::new().await;
    let (mut first, welcome) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    assert_eq!(welcome.epoch, 1);
    let mut liar = Peer::connect(mesh.server).await;
    let high = Hello {
        epoch: u64::MAX,
        ..hello("a", "p2", vec![])
    };
    liar.send(Up::Hello(high)).await;
    let status = liar.end().await;
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let field = &status.get_details_bad_request().unwrap().field_violations[0];
    assert_eq!(field.field, "hello.epoch");
    assert!(field.description.contains("or 0 in its first"), "{field:?}");
    first.send(Up::Beat(Beat { sequence: 1 })).await;
    assert_eq!(ack(&mut first).await.of, Some(ack::Of::Beat(1)));
}

#[tokio::test]
async fn the_same_process_resumes_without_a_flap() {
    let mesh = Mesh::new().await;
    let set = vec![instance("a", "users/u1").1];
    let (mut first, welcome) = Peer::open(mesh.server, hello("a", "p1", set.clone())).await;
    mesh.names_at(welcome.revision).await;
    let mut changes = mesh.fixture.registry.subscribe();
    let known = Hello {
        epoch: welcome.epoch,
        ..hello("a", "p1", set)
    };
    let (_second, again) = Peer::open(mesh.server, known).await;
    assert_eq!(again.epoch, welcome.epoch);
    mesh.names_at(again.revision).await;
    let batch = within(changes.next()).await;
    assert!(batch.services.is_empty(), "{batch:?}");
    // The first stream may be half-open, but it must end.
    assert_eq!(reason(&first.end().await), "SESSION_REPLACED");
}

#[tokio::test]
async fn a_broken_stream_leaves_the_instances_for_the_lease() {
    let mesh = Mesh::over(Fixture::with_ttl(Duration::from_secs(2)).await).await;
    let set = vec![instance("a", "users/u1").1];
    let (peer, welcome) = Peer::open(mesh.server, hello("a", "p1", set)).await;
    drop(peer);
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/users.default/u1"]
    );
    mesh.fixture.until(|view| names(view).is_empty()).await;
}

#[tokio::test]
async fn a_node_without_heartbeats_learns_that_its_lease_lapsed() {
    let mesh = Mesh::over(Fixture::with_ttl(Duration::from_secs(2)).await).await;
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    let status = peer.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (tonic::Code::Unavailable, "LEASE_LAPSED".into())
    );
}

#[tokio::test]
async fn a_node_that_uploads_for_long_keeps_its_lease() {
    let ttl = Duration::from_secs(2);
    let mesh = Mesh::over(Fixture::with_ttl(ttl).await).await;
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    let begin = Instant::now();
    while begin.elapsed() < ttl * 2 {
        peer.send(Up::Schema(SchemaUpload::default())).await;
        tokio::time::sleep(ttl / 20).await; // longer than the lease: time itself is what is tested
    }
    peer.send(Up::Beat(Beat { sequence: 1 })).await;
    ack(&mut peer).await;
}

#[tokio::test]
async fn bad_messages_end_the_session_and_change_nothing() {
    let mesh = Mesh::new().await;
    let unfit = hello("Not_A_Label", "p1", vec![]);
    for (first, field) in [
        (Up::Hello(unfit), "hello.node"),
        (Up::Beat(Beat { sequence: 1 }), "hello"),
    ] {
        let mut peer = Peer::connect(mesh.server).await;
        peer.send(first).await;
        let status = peer.end().await;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert_eq!(
            status.get_details_bad_request().unwrap().field_violations[0].field,
            field
        );
    }
    assert_eq!(mesh.fixture.keys_of_nodes().await, [""; 0]);

    let (mut peer, welcome) = Peer::open(
        mesh.server,
        hello("a", "p1", vec![instance("a", "users/u1").1]),
    )
    .await;
    peer.send(upsert(2, "users/u2")).await;
    let status = peer.end().await;
    assert!(
        status
            .message()
            .starts_with("change.sequence: is 2 where 1 was expected"),
        "{status}"
    );
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/users.default/u1"]
    );
}

#[tokio::test]
async fn a_node_that_gave_up_before_its_welcome_does_not_take_the_node_later() {
    let (fixture, store) = Fixture::gated(Duration::from_secs(600)).await;
    let mesh = Mesh::over(fixture).await;
    store.shut();
    let peer = Peer::connect(mesh.server).await;
    let set = vec![instance("a", "users/u1").1];
    peer.send(Up::Hello(hello("a", "p1", set))).await;
    store.waiting(1).await;
    drop(peer);
    store.waiting(0).await;
    store.open();
    assert_eq!(mesh.fixture.keys_of_nodes().await, [""; 0]);
}

#[tokio::test]
async fn a_stopping_replica_says_so() {
    let mesh = Mesh::new().await;
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    mesh.fixture.registry.options().stop.cancel();
    let status = peer.end().await;
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("connect again"), "{status}");
}

#[tokio::test]
async fn a_store_that_is_away_costs_no_session_and_no_change() {
    let replicas = Replicas::new();
    let (registry, wire) = replicas.join("c1", Duration::from_secs(6)).await;
    let server = serve(&registry, &Arc::new(RecordedQueries::default())).await;
    let (mut peer, welcome) =
        Peer::open(server, hello("a", "p1", vec![instance("a", "users/u1").1])).await;
    registry.reached(Revision(welcome.revision)).await;
    wire.cut();
    // Long enough that each heartbeat would renew the lease.
    for sequence in 1..=2 {
        tokio::time::sleep(registry.options().renew_interval * 6 / 10).await;
        peer.send(Up::Beat(Beat { sequence })).await;
        assert_eq!(ack(&mut peer).await.of, Some(ack::Of::Beat(sequence)));
    }
    assert!(
        registry.store_away().is_some(),
        "the beats did not reach it"
    );
    peer.send(upsert(1, "users/u2")).await;
    let early = timeout(Duration::from_millis(300), peer.next()).await;
    assert!(early.is_err(), "it is not durable yet: {early:?}");
    wire.mend();
    let done = ack(&mut peer).await;
    assert_eq!(done.of, Some(ack::Of::Change(1)));
    registry.reached(Revision(done.revision)).await;
    assert_eq!(registry.read(names).len(), 2);
}

#[tokio::test]
async fn a_node_is_sent_away_from_a_replica_that_alone_is_cut_off() {
    let replicas = Replicas::new();
    let ttl = Duration::from_secs(2);
    let (_other, _) = replicas.join("c1", ttl).await;
    let (registry, wire) = replicas.join("c2", ttl).await;
    until(&registry, |view| view.replicas().count() == 2).await;
    let server = serve(&registry, &Arc::new(RecordedQueries::default())).await;
    let (mut peer, _) = Peer::open(server, hello("a", "p1", vec![])).await;
    wire.cut();
    let beats = async {
        for sequence in 1.. {
            tokio::time::sleep(ttl / 10).await;
            if !peer.try_send(Up::Beat(Beat { sequence })).await {
                return;
            }
        }
    };
    within(beats).await;
    let status = peer.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (tonic::Code::Unavailable, "STORE_AWAY".into())
    );
}

#[tokio::test]
async fn the_cause_that_a_node_gives_is_an_event_by_change_and_by_hello() {
    let mesh = Mesh::new().await;
    let set = ["u1", "u2", "u3", "u4"].map(|id| instance("a", &format!("users/{id}")).1);
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", set.to_vec())).await;
    let removed = vec![gone("users", "u1", "it vanished"), gone("users", "u2", "")];
    let change = Change {
        sequence: 1,
        removed,
        ..Change::default()
    };
    peer.send(Up::Change(change)).await;
    ack(&mut peer).await;
    let again = Hello {
        gone: vec![gone("users", "u3", "no beat"), gone("users", "u4", "")],
        ..hello("a", "p1", vec![])
    };
    let (_peer, welcome) = Peer::open(mesh.server, again).await;
    assert!(mesh.names_at(welcome.revision).await.is_empty());
    let expired_events: Vec<_> = mesh.fixture.registry.read(|view| {
        let expired = view
            .events()
            .filter(|event| event.record.kind == "instance-expired");
        expired
            .map(|event| (event.record.instance.clone(), event.record.cause.clone()))
            .collect()
    });
    let expected = [("u1", "it vanished"), ("u3", "no beat")];
    assert_eq!(
        expired_events,
        expected.map(|(id, cause)| (id.to_owned(), cause.to_owned()))
    );
}
