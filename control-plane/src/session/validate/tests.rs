use tonic_types::StatusExt as _;

use heddle_proto::registry::v1::HealthCheck;

use super::*;
use crate::{registry::fixture::instance, session::rejected};

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

/// The fields for which a Hello is refused after `spoil` has changed it.
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

/// The field for which the first instance is rejected after `spoil` has changed it; all others are accepted.
fn local_fault(spoil: impl FnOnce(&mut LocalInstance)) -> (String, String) {
    let mut message = good();
    message.instances.push(instance("a", "users/u2").1);
    spoil(&mut message.instances[0]);
    let read = hello(message, false).unwrap();
    let taken: Vec<_> = read
        .instances
        .iter()
        .map(|(key, _)| key.to_string())
        .collect();
    assert_eq!(taken, ["a/users.default/u2"]);
    let [Rejected { rejection, .. }] = &read.rejected[..] else {
        panic!("{:?}", read.rejected);
    };
    (rejection.field.clone(), rejection.description.clone())
}

/// Like `local_fault`, for its registration.
fn instance_fault(spoil: impl FnOnce(&mut Instance)) -> String {
    local_fault(|local| spoil(local.instance.as_mut().unwrap())).0
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
    let ValidHello {
        identity,
        instances,
        gone,
        rejected,
    } = hello(message, true).unwrap();
    assert_eq!(rejected, []);
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
    for node in [
        "",
        "Node",
        "a_b",
        "-a",
        "a-",
        "a.b",
        &"x".repeat(64),
        "ä",
        "epoch-floor",
    ] {
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

/// Issue 10, B3: one bad field refused the whole node.
#[test]
fn each_bad_field_of_an_instance_is_named_and_the_others_are_taken() {
    let field = |name: &str| format!("instance.{name}");
    type Spoil = fn(&mut Instance);
    let bad: [(&str, Spoil); 11] = [
        ("service", |it| it.service = "Users".into()),
        ("namespace", |it| it.namespace = "a b".into()),
        ("id", |it| it.id = "u/1".into()),
        ("version", |it| it.version = "v".repeat(64)),
        ("protocol", |it| it.protocol = 3),
        ("protocol", |it| it.protocol = 99),
        ("health.kind", |it| {
            it.health = Some(HealthCheck {
                kind: 99,
                ..HealthCheck::default()
            });
        }),
        ("weight", |it| it.weight = 1001),
        ("protos[0]", |it| it.protos = vec!["a..B".into()]),
        ("labels", |it| {
            it.labels = (0..33).map(|n| (n.to_string(), "".into())).collect();
        }),
        ("labels[\"k\"]", |it| {
            it.labels = [("k".into(), "x".repeat(257))].into();
        }),
    ];
    for (name, spoil) in bad {
        assert_eq!(instance_fault(spoil), field(name));
    }
    for address in [
        "localhost:80",
        "10.0.0.1",
        "10.0.0.1:0",
        "0.0.0.0:80",
        "[::]:80",
        "[::ffff:0.0.0.0]:80",
        "224.0.0.1:80",
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[fe80::1]:80",
        "[fe80::1%2]:80",
    ] {
        let found = instance_fault(|it| it.address = address.into());
        assert_eq!(found, field("address"), "{address}");
    }
    assert_eq!(local_fault(|it| it.instance = None).0, "instance");
    assert_eq!(
        local_fault(|it| it.schema_sha256 = "AB".into()).0,
        "schema_sha256"
    );
    let (name, text) = local_fault(|it| it.health = 99);
    assert_eq!(name, "health");
    assert!(text.contains("Upgrade the control plane first"), "{text}");
}

#[test]
fn of_the_same_instance_twice_the_first_counts() {
    let mut message = good();
    message.instances.push(message.instances[0].clone());
    let read = hello(message, false).unwrap();
    assert_eq!(read.instances.len(), 1);
    assert_eq!(read.rejected[0].rejection.field, "instance.id");
}

#[test]
fn a_rejection_stays_small_whatever_was_sent() {
    let mut message = good();
    message.node = "X".repeat(5000);
    message.advertise = "Y".repeat(5000);
    let status = hello(message, false).unwrap_err();
    assert!(
        status.details().len() + status.message().len() < 8000,
        "it travels in a header"
    );
    assert!(status.message().contains("more)"), "{status}");

    let mut message = good();
    let mut bad = message.instances.remove(0);
    bad.instance.as_mut().unwrap().service = "X".repeat(5000);
    bad.instance.as_mut().unwrap().labels = [("\u{7}".repeat(100_000), String::new())].into();
    message.instances = vec![bad; MAX_INSTANCES];
    let read = hello(message, false).unwrap();
    let rejected = rejected::for_node(read.rejected);
    assert_eq!(rejected.len(), MAX_INSTANCES);
    assert!(rejected[0].description.contains("more)"), "{rejected:?}");
    let bytes: usize = rejected.iter().map(Message::encoded_len).sum();
    assert!(bytes < 4 << 20, "it travels in one message: {bytes}");
}

#[test]
fn an_ipv4_address_in_the_form_of_an_ipv6_one_is_the_ipv4_one() {
    let mut message = good();
    message.advertise = "[::ffff:10.0.0.1]:15008".into();
    let registration = message.instances[0].instance.as_mut().unwrap();
    registration.address = "[::ffff:127.0.0.1]:21001".into();
    let read = hello(message, false).unwrap();
    assert_eq!(read.identity.advertise.to_string(), "10.0.0.1:15008");
    let registration = read.instances[0].1.instance.as_ref().unwrap();
    assert_eq!(registration.address, "127.0.0.1:21001");
}

#[test]
fn listeners_are_addresses_and_not_too_many() {
    let mut message = good();
    let many = (1..1000).map(|port| format!("127.0.0.1:{port}"));
    message.listeners = ["unix:/run/x", "[::]:15001"]
        .map(ToOwned::to_owned)
        .into_iter()
        .chain(many)
        .collect();
    let read = hello(message, false).unwrap();
    assert_eq!(read.identity.listeners.len(), MAX_LISTENERS);
    assert!(
        read.identity
            .listeners
            .contains(&"[::]:15001".parse().unwrap())
    );
    assert_eq!(faults(|hello| hello.host = "x".repeat(200)), ["hello.host"]);
}

#[test]
fn changes_are_validated_like_the_full_set() {
    let node = Arc::from("a");
    let message = Change {
        sequence: 1,
        upserted: vec![instance("a", "users/u2").1],
        removed: vec![
            gone("u1", ""),
            gone("u3", &format!("line\n{}", "x".repeat(5000))),
        ],
    };
    let Changes { writes, rejected } = change(&node, message).unwrap();
    assert_eq!(rejected, []);
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

    // An instance with an invalid name cannot exist: its removal is ignored, and the rest is accepted.
    let mut bad = instance("a", "users/u2").1;
    bad.instance.as_mut().unwrap().address = "0.0.0.0:1".into();
    let message = Change {
        upserted: vec![bad, instance("a", "users/u3").1],
        removed: vec![gone("", "")],
        ..Change::default()
    };
    let Changes { writes, rejected } = change(&node, message).unwrap();
    assert!(matches!(&writes[..], [NodeWrite::Put(key, _)] if &*key.id == "u3"));
    assert_eq!(rejected[0].rejection.field, "instance.address");
    assert!(rejected[0].key.is_some());
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
    let ValidHello { instances, .. } = hello(message, false).unwrap();
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
    let ValidHello { instances, .. } = hello(message, false).unwrap();
    let protos = &instances[0].1.protos;
    let bytes: usize = protos.iter().map(Message::encoded_len).sum();
    assert!(bytes <= MAX_PROTOS_BYTES, "{bytes}");
    assert!(protos.len() > 1000, "names come first: {}", protos.len());
}
