use std::sync::atomic::Ordering;

use heddle_proto::control::v1::{
    Beat, GoneInstance, Hello, InstanceRef, Leave, LocalInstance, Rejection,
};
use prost_types::FileDescriptorSet;
use sha2::{Digest as _, Sha256};
use tonic_types::StatusExt as _;

use super::{
    super::fixture::{Asked, Peer, hello, serve},
    *,
};
use crate::{
    registry::fixture::{Fixture, Replicas, instance, names, until, within},
    store::Revision,
};

use control_message::Message as Down;
use node_message::Message as Up;

struct Mesh {
    fixture: Fixture,
    server: std::net::SocketAddr,
    asked: Arc<Asked>,
}

impl Mesh {
    async fn new() -> Self {
        Self::over(Fixture::new().await).await
    }

    async fn over(fixture: Fixture) -> Self {
        let asked = Arc::new(Asked::default());
        let server = serve(&fixture.registry, &asked).await;
        Self {
            fixture,
            server,
            asked,
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
async fn a_newer_process_takes_over_and_the_older_is_told_by_whom() {
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
async fn a_node_that_does_not_beat_is_told_that_its_lease_lapsed() {
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
            .starts_with("change.sequence: 2 came where 1 was due"),
        "{status}"
    );
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/users.default/u1"]
    );
}

#[tokio::test]
async fn descriptors_are_asked_for_checked_and_kept_byte_for_byte() {
    let mesh = Mesh::new().await;
    // The unknown field represents an extension that generated types do not know.
    let mut bytes = FileDescriptorSet::default().encode_to_vec();
    bytes.extend([0xca, 0x3e, 0x02, b'h', b'i']);
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut local = instance("a", "users/u1").1;
    local.schema_sha256.clone_from(&sha256);
    let (mut peer, welcome) = Peer::open(mesh.server, hello("a", "p1", vec![local.clone()])).await;
    assert_eq!(welcome.missing_schemas, [sha256.as_str()]);

    let upload = |bytes: &[u8]| {
        let file_descriptor_set = bytes.to_vec().into();
        Up::Schema(SchemaUpload {
            sha256: sha256.clone(),
            file_descriptor_set,
        })
    };
    peer.send(upload(b"something else")).await;
    let ask_again = Change {
        sequence: 1,
        upserted: vec![local.clone()],
        removed: vec![],
    };
    peer.send(Up::Change(ask_again)).await;
    assert_eq!(
        ack(&mut peer).await.missing_schemas,
        [sha256.as_str()],
        "the wrong one is not kept"
    );
    peer.send(upload(&bytes)).await;
    mesh.fixture.until(|view| view.has_schema(&sha256)).await;
    assert_eq!(
        mesh.fixture.registry.schema(&sha256).await,
        Ok(Some(bytes.into()))
    );

    peer.send(Up::Change(Change {
        sequence: 2,
        upserted: vec![local],
        removed: vec![],
    }))
    .await;
    assert_eq!(ack(&mut peer).await.missing_schemas, [""; 0]);
    // These descriptors were not requested.
    let other = FileDescriptorSet::default().encode_to_vec();
    let sha256: String = Sha256::digest(&other)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let unasked = SchemaUpload {
        sha256: sha256.clone(),
        file_descriptor_set: other.into(),
    };
    peer.send(Up::Schema(unasked)).await;
    peer.send(Up::Beat(Beat { sequence: 1 })).await;
    ack(&mut peer).await;
    assert_eq!(mesh.fixture.registry.schema(&sha256).await, Ok(None));
}

#[tokio::test]
async fn a_removal_query_is_answered_for_the_revision_that_removed() {
    let mesh = Mesh::new().await;
    let (mut peer, _) = Peer::open(
        mesh.server,
        hello("a", "p1", vec![instance("a", "users/u1").1]),
    )
    .await;
    peer.send(remove(1, "users", "u1")).await;
    let removed = ack(&mut peer).await;
    let wait = prost_types::Duration {
        seconds: 60,
        nanos: 0,
    };
    let instance = Some(reference("users", "u1"));
    peer.send(Up::RemovalQuery(RemovalQuery {
        id: 9,
        instance,
        max_wait: Some(wait),
    }))
    .await;
    let Down::RemovalAnswer(answer) = peer.next().await.unwrap() else {
        panic!("no answer")
    };
    assert_eq!((answer.id, answer.acknowledged), (9, false));
    assert_eq!(answer.unacknowledged, ["slow-client"]);
    let asked = mesh.asked.questions.lock().unwrap().clone();
    let [(asked_for, revision, asked_wait)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(asked_for, "a/users.default/u1");
    assert_eq!(*revision, Revision(removed.revision));
    assert!(
        *asked_wait <= MAX_REMOVAL_WAIT && *asked_wait > MAX_REMOVAL_WAIT / 2,
        "never longer than the bound: {asked_wait:?}"
    );
}

#[tokio::test]
async fn too_many_removal_queries_are_answered_and_end_no_session() {
    let mesh = Mesh::new().await;
    mesh.asked.silent.store(true, Ordering::Relaxed);
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    for id in 0..=MAX_QUERIES as u64 {
        peer.send(Up::RemovalQuery(RemovalQuery {
            id,
            instance: Some(reference("users", "u1")),
            max_wait: None,
        }))
        .await;
    }
    let Down::RemovalAnswer(answer) = peer.next().await.unwrap() else {
        panic!("no answer")
    };
    assert_eq!(
        (answer.id, answer.acknowledged),
        (MAX_QUERIES as u64, false)
    );
    let why = &answer.unacknowledged[0];
    assert!(why.contains("are under way"), "{why}");
    peer.send(Up::Beat(Beat { sequence: 1 })).await;
    ack(&mut peer).await;
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
    let server = serve(&registry, &Arc::new(Asked::default())).await;
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
    let server = serve(&registry, &Arc::new(Asked::default())).await;
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
    let told: Vec<_> = mesh.fixture.registry.read(|view| {
        let expired = view
            .events()
            .filter(|event| event.record.kind == "instance-expired");
        expired
            .map(|event| (event.record.instance.clone(), event.record.cause.clone()))
            .collect()
    });
    let expected = [("u1", "it vanished"), ("u3", "no beat")];
    assert_eq!(
        told,
        expected.map(|(id, cause)| (id.to_owned(), cause.to_owned()))
    );
}

fn at(name: &str, address: &str) -> LocalInstance {
    let mut local = instance("a", name).1;
    local.instance.as_mut().unwrap().address = address.into();
    local
}

/// "id field" of each, in the order received.
fn reasons_of(rejected: &[Rejection]) -> Vec<String> {
    let of = |it: &Rejection| format!("{} {}", it.instance.as_ref().unwrap().id, it.field);
    rejected.iter().map(of).collect()
}

/// Issue 10, B3: one bad instance refused the whole node, forever.
#[tokio::test]
async fn an_instance_that_is_not_taken_is_named_and_the_others_are_in_use() {
    let mesh = Mesh::new().await;
    let mut newer = at("users/newer", "127.0.0.1:21002");
    newer.instance.as_mut().unwrap().protocol = 77;
    let set = vec![
        at("users/u1", "127.0.0.1:21001"),
        newer,
        at("users/link", "169.254.1.1:80"),
    ];
    let (mut peer, welcome) = Peer::open(mesh.server, hello("a", "p1", set)).await;
    assert_eq!(
        reasons_of(&welcome.rejected),
        ["newer instance.protocol", "link instance.address"]
    );
    let text = &welcome.rejected[0].description;
    assert!(text.contains("77") && text.contains("newer"), "{text}");
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/users.default/u1"]
    );

    // The same in a Change. The accepted state from before is removed, and the event has the cause.
    let change = Change {
        sequence: 1,
        upserted: vec![
            at("users/u1", "0.0.0.0:80"),
            at("users/u2", "127.0.0.1:21003"),
        ],
        removed: vec![],
    };
    peer.send(Up::Change(change)).await;
    let first = ack(&mut peer).await;
    assert_eq!(first.of, Some(ack::Of::Change(1)));
    assert_eq!(reasons_of(&first.rejected), ["u1 instance.address"]);
    assert_eq!(mesh.names_at(first.revision).await, ["a/users.default/u2"]);
    let causes: Vec<_> = mesh.fixture.registry.read(|view| {
        let expired = view
            .events()
            .filter(|it| it.record.kind == "instance-expired");
        expired.map(|it| it.record.cause.clone()).collect()
    });
    assert!(
        causes.len() == 1 && causes[0].starts_with("refused: instance.address: 0.0.0.0 "),
        "{causes:?}"
    );
    // The session continues.
    peer.send(upsert(2, "users/u3")).await;
    let second = ack(&mut peer).await;
    assert_eq!(reasons_of(&second.rejected), Vec::<String>::new());
}

/// Issue 10, B3.
#[tokio::test]
async fn no_instance_is_taken_where_a_proxy_listens() {
    let mesh = Mesh::new().await;
    let proxy = |node: &str, process: &str, port: u16, set| Hello {
        advertise: format!("10.0.0.1:{port}8"),
        listeners: vec![format!("127.0.0.1:{port}1"), format!("0.0.0.0:{port}8")],
        host: "h1".into(),
        ..hello(node, process, set)
    };
    let own = vec![
        at("users/outbound", "127.0.0.1:1501"),
        at("users/mapped", "[::ffff:127.0.0.1]:1501"),
        at("users/wildcard", "127.0.0.1:1508"),
        at("users/inbound", "10.0.0.1:1508"),
        at("users/good", "127.0.0.1:2501"),
    ];
    let (mut a, welcome) = Peer::open(mesh.server, proxy("a", "p1", 150, own)).await;
    assert_eq!(
        reasons_of(&welcome.rejected),
        ["outbound", "mapped", "wildcard", "inbound"].map(|id| format!("{id} instance.address"))
    );
    let text = &welcome.rejected[0].description;
    assert!(
        text.contains("127.0.0.1:1501 is a listener of the proxy on node a"),
        "{text}"
    );
    assert_eq!(
        mesh.names_at(welcome.revision).await,
        ["a/users.default/good"]
    );

    // Another proxy of the host starts to listen at an instance's address: the next heartbeat's Ack reports it.
    let (_b, welcome) = Peer::open(mesh.server, proxy("b", "p2", 250, vec![])).await;
    within(mesh.fixture.registry.reached(Revision(welcome.revision))).await;
    a.send(Up::Beat(Beat { sequence: 1 })).await;
    let beat = ack(&mut a).await;
    assert_eq!(beat.of, Some(ack::Of::Beat(1)));
    assert_eq!(reasons_of(&beat.rejected), ["good instance.address"]);
    mesh.fixture.until(|view| names(view).is_empty()).await;
    // It is reported only once.
    a.send(Up::Beat(Beat { sequence: 2 })).await;
    assert_eq!(
        reasons_of(&ack(&mut a).await.rejected),
        Vec::<String>::new()
    );
    let again = Change {
        sequence: 1,
        upserted: vec![at("users/good", "10.0.0.1:2508")],
        removed: vec![],
    };
    a.send(Up::Change(again)).await;
    let refused = ack(&mut a).await;
    assert_eq!(reasons_of(&refused.rejected), ["good instance.address"]);
    let text = &refused.rejected[0].description;
    assert!(text.contains("the proxy of node b"), "{text}");
}
