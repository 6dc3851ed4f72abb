//! Instances that cannot be accepted are named; the others of the node are in use.

use heddle_proto::control::v1::Rejection;

use super::*;

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
    assert!(text.contains("the proxy on node b"), "{text}");
}
