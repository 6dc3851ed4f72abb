use tonic_types::StatusExt as _;

use super::*;
use crate::registry::fixture::instance;

fn good() -> Hello {
    Hello {
        node: "a".into(),
        process_id: "p1".into(),
        advertise: "10.0.0.1:15008".into(),
        instances: vec![instance("a", "users/u1").1],
        ..Hello::default()
    }
}

fn gone(id: &str, cause: &str) -> GoneInstance {
    GoneInstance {
        service: "users".into(),
        id: id.into(),
        cause: cause.into(),
        ..GoneInstance::default()
    }
}

/// The fields that a Hello, spoilt by `spoil`, is refused for.
fn faults(spoil: impl FnOnce(&mut Hello)) -> Vec<String> {
    let mut message = good();
    spoil(&mut message);
    let status = hello(message, false).unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert!(status.message().contains(&violations[0].field), "{status}");
    violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

/// As above, for the first instance's registration.
fn instance_faults(spoil: impl FnOnce(&mut Instance)) -> Vec<String> {
    faults(|hello| spoil(hello.instances[0].instance.as_mut().unwrap()))
}

#[test]
fn a_good_hello_has_its_defaults_filled_in() {
    let mut message = good();
    let registration = message.instances[0].instance.as_mut().unwrap();
    (
        registration.namespace,
        registration.weight,
        registration.protocol,
    ) = (String::new(), 0, 0);
    registration.address = "[::1]:021001".replace("021001", "21001");
    message.gone = vec![gone("u2", "its keep-alive stream broke"), gone("u3", "")];
    let Said {
        identity,
        instances,
        gone,
    } = hello(message, true).unwrap();
    assert_eq!(
        (identity.name.as_str(), identity.epoch, identity.loopback),
        ("a", 0, true)
    );
    let (key, local) = &instances[0];
    assert_eq!(key.to_string(), "a/users.default/u1");
    let registration = local.instance.as_ref().unwrap();
    assert_eq!(
        (registration.namespace.as_str(), registration.weight),
        ("default", 1)
    );
    assert_eq!(registration.protocol(), Protocol::Grpc);
    assert_eq!(registration.address, "[::1]:21001");
    let gone: Vec<_> = gone
        .iter()
        .map(|(key, cause)| (key.to_string(), cause.as_deref()))
        .collect();
    let broke = Some("its keep-alive stream broke");
    let expected = [
        ("a/users.default/u2".to_owned(), broke),
        ("a/users.default/u3".to_owned(), None),
    ];
    assert_eq!(gone, expected);
}

#[test]
fn each_bad_field_of_a_node_is_named() {
    for node in ["", "Node", "a_b", "-a", "a-", "a.b", &"x".repeat(64), "ä"] {
        assert_eq!(
            faults(|hello| hello.node = node.into()),
            ["hello.node"],
            "{node:?}"
        );
    }
    assert_eq!(
        faults(|hello| hello.process_id.clear()),
        ["hello.process_id"]
    );
    assert_eq!(
        faults(|hello| hello.gone = vec![gone("u1", ""), gone("U2", "")]),
        ["hello.gone[1].id"]
    );
    assert_eq!(
        faults(|hello| hello.gone = vec![gone("u1", ""); MAX_INSTANCES + 1]),
        ["hello.gone"]
    );
    assert_eq!(
        faults(|hello| hello.region = "x".repeat(64)),
        ["hello.region"]
    );
    assert_eq!(faults(|hello| hello.zone = "a\nb".into()), ["hello.zone"]);
    for address in [
        "",
        "host:1",
        "10.0.0.1",
        "10.0.0.1:0",
        "0.0.0.0:1",
        "[::]:1",
        "224.0.0.1:1",
    ] {
        let found = faults(|hello| hello.advertise = address.into());
        assert_eq!(found, ["hello.advertise"], "{address:?}");
    }
    assert_eq!(
        faults(|hello| {
            hello.node.clear();
            hello.advertise.clear();
        }),
        ["hello.node", "hello.advertise"],
        "all faults at once"
    );
}

#[test]
fn each_bad_field_of_an_instance_is_named() {
    let field = |name: &str| vec![format!("hello.instances[0].instance.{name}")];
    assert_eq!(
        instance_faults(|it| it.service = "Users".into()),
        field("service")
    );
    assert_eq!(
        instance_faults(|it| it.namespace = "a b".into()),
        field("namespace")
    );
    assert_eq!(instance_faults(|it| it.id = "u/1".into()), field("id"));
    assert_eq!(
        instance_faults(|it| it.version = "v".repeat(64)),
        field("version")
    );
    assert_eq!(
        instance_faults(|it| it.address = "localhost:80".into()),
        field("address")
    );
    assert_eq!(instance_faults(|it| it.protocol = 3), field("protocol"));
    assert_eq!(instance_faults(|it| it.protocol = 99), field("protocol"));
    assert_eq!(instance_faults(|it| it.weight = 1001), field("weight"));
    assert_eq!(
        instance_faults(|it| it.protos = vec!["a..B".into()]),
        field("protos[0]")
    );
    assert_eq!(
        instance_faults(|it| it.labels = (0..33).map(|n| (n.to_string(), "".into())).collect()),
        field("labels")
    );
    assert_eq!(
        instance_faults(|it| it.labels = [("k".into(), "x".repeat(257))].into()),
        field("labels[\"k\"]")
    );
    let local = |spoil: fn(&mut LocalInstance)| faults(|hello| spoil(&mut hello.instances[0]));
    assert_eq!(
        local(|it| it.instance = None),
        ["hello.instances[0].instance"]
    );
    assert_eq!(
        local(|it| it.schema_sha256 = "AB".into()),
        ["hello.instances[0].schema_sha256"]
    );
    let twice = faults(|hello| hello.instances.push(hello.instances[0].clone()));
    assert_eq!(twice, ["hello.instances[1].instance.id"]);
}

#[test]
fn a_refusal_stays_small_whatever_was_sent() {
    let mut message = good();
    let mut bad = message.instances.remove(0);
    bad.instance.as_mut().unwrap().service = "X".repeat(5000);
    bad.instance.as_mut().unwrap().labels = [("\u{7}".repeat(100_000), String::new())].into();
    message.instances = vec![bad; 1000];
    let status = hello(message, false).unwrap_err();
    assert!(
        status.details().len() + status.message().len() < 8000,
        "it travels in a header"
    );
    assert!(status.message().contains("more)"), "{status}");
}

#[test]
fn changes_are_judged_like_the_full_set() {
    let node = Arc::from("a");
    let message = Change {
        sequence: 1,
        upserted: vec![instance("a", "users/u2").1],
        removed: vec![
            gone("u1", ""),
            gone("u3", &format!("line\n{}", "x".repeat(5000))),
        ],
    };
    let writes = change(&node, message).unwrap();
    assert!(
        matches!(&writes[0], NodeWrite::Remove(key, None) if key.to_string() == "a/users.default/u1")
    );
    let NodeWrite::Remove(_, Some(cause)) = &writes[1] else {
        panic!("{writes:?}");
    };
    assert!(cause.starts_with("linexx") && cause.len() == MAX_REASON);
    assert!(
        matches!(&writes[2], NodeWrite::Put(key, _) if key.to_string() == "a/users.default/u2")
    );

    let message = Change {
        removed: vec![gone("", "")],
        ..Change::default()
    };
    let status = change(&node, message).unwrap_err();
    assert!(
        status.message().starts_with("change.removed[0].id"),
        "{status}"
    );
    let status = removed_instance(&node, None).unwrap_err();
    assert!(
        status
            .message()
            .starts_with("removal_query.instance.service"),
        "{status}"
    );
}

#[test]
fn what_programs_derived_is_cut_and_keeps_no_node_out() {
    let mut message = good();
    let local = &mut message.instances[0];
    local.health_reason = format!("line\n{}", "x".repeat(5000));
    local.protos.push(local.protos[0].clone());
    local.protos[0].name = "1x".into();
    let Said { instances, .. } = hello(message, false).unwrap();
    let local = &instances[0].1;
    assert_eq!(local.health_reason.len(), MAX_REASON);
    assert!(local.health_reason.starts_with("linex"));
    assert_eq!(local.protos.len(), 1);
}

#[test]
fn what_it_serves_always_fits_a_transaction() {
    let mut message = good();
    let local = &mut message.instances[0];
    let method = "x".repeat(60);
    local.protos = (0..2000)
        .map(|n| ProtoService {
            name: format!("shop.v1.Service{n:04}{}", "y".repeat(150)),
            idempotent_methods: vec![method.clone(); 20],
        })
        .collect();
    let Said { instances, .. } = hello(message, false).unwrap();
    let protos = &instances[0].1.protos;
    let bytes: usize = protos.iter().map(Message::encoded_len).sum();
    assert!(bytes <= MAX_PROTOS_BYTES, "{bytes}");
    assert!(protos.len() > 1000, "names come first: {}", protos.len());
}
