use std::collections::HashMap;

use heddle_proto::registry::v1::{HealthCheck, Instance, Protocol, health_check::Kind};
use prost::{Message as _, bytes::Bytes};
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

use super::instance;
use crate::agent::{
    schema::{MAX_SCHEMA_BYTES, Schema, SchemaError, files},
    served::{Declared, Reflected, Served},
    validate::{Origin, check},
};

fn faults(instance: Instance, set: &[u8], origin: Origin) -> Vec<(String, String)> {
    let own = |ip: std::net::IpAddr| ip.is_loopback();
    match check(instance, &Bytes::copy_from_slice(set), origin, &own) {
        Ok(_) => vec![],
        Err(found) => found
            .into_iter()
            .map(|v| (v.field, v.description))
            .collect(),
    }
}

#[test]
fn every_fault_names_its_field_and_the_remedy() {
    let good = || instance("users", "u1", "127.0.0.1:7001");
    let duration = |millis: i32| {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: millis * 1_000_000,
        })
    };
    let health = |h: HealthCheck| Some(HealthCheck { ..h });
    let cases: Vec<(Instance, &str, &str)> = vec![
        (
            Instance {
                service: String::new(),
                ..good()
            },
            "instance.service",
            "missing",
        ),
        (
            Instance {
                service: "Users".into(),
                ..good()
            },
            "instance.service",
            "DNS label",
        ),
        (
            Instance {
                service: "a".repeat(64),
                ..good()
            },
            "instance.service",
            "63",
        ),
        (
            Instance {
                namespace: "a.b".into(),
                ..good()
            },
            "instance.namespace",
            "DNS label",
        ),
        (
            Instance {
                id: "-x".into(),
                ..good()
            },
            "instance.id",
            "DNS label",
        ),
        (
            Instance {
                version: "v".repeat(64),
                ..good()
            },
            "instance.version",
            "63",
        ),
        (
            Instance {
                address: String::new(),
                ..good()
            },
            "instance.address",
            "IP:port",
        ),
        (
            Instance {
                address: "localhost:1".into(),
                ..good()
            },
            "instance.address",
            "names are not resolved",
        ),
        (
            Instance {
                address: "127.0.0.1:0".into(),
                ..good()
            },
            "instance.address",
            "port 0",
        ),
        (
            Instance {
                address: "0.0.0.0:80".into(),
                ..good()
            },
            "instance.address",
            "127.0.0.1:80",
        ),
        (
            Instance {
                address: "192.0.2.7:80".into(),
                ..good()
            },
            "instance.address",
            "own node",
        ),
        (
            Instance {
                protocol: Protocol::Tcp.into(),
                ..good()
            },
            "instance.protocol",
            "grpc or http",
        ),
        (
            Instance {
                protocol: 9,
                ..good()
            },
            "instance.protocol",
            "unknown",
        ),
        (
            Instance {
                weight: 1001,
                ..good()
            },
            "instance.weight",
            "1000",
        ),
        (
            Instance {
                protos: vec!["a.B".into(), "not a name".into()],
                ..good()
            },
            "instance.protos[1]",
            "package.Service",
        ),
        (
            Instance {
                labels: (0..33).map(|i| (format!("k{i}"), String::new())).collect(),
                ..good()
            },
            "instance.labels",
            "32",
        ),
        (
            Instance {
                labels: HashMap::from([(String::new(), "v".into())]),
                ..good()
            },
            "instance.labels[\"\"]",
            "1 to 63",
        ),
        (
            Instance {
                health: health(HealthCheck {
                    kind: 99,
                    ..Default::default()
                }),
                ..good()
            },
            "instance.health.kind",
            "grpc, http, tcp or none",
        ),
        (
            Instance {
                health: health(HealthCheck {
                    interval: duration(1),
                    ..Default::default()
                }),
                ..good()
            },
            "instance.health.interval",
            "50 ms",
        ),
        (
            Instance {
                health: health(HealthCheck {
                    unhealthy_threshold: 101,
                    ..Default::default()
                }),
                ..good()
            },
            "instance.health.unhealthy_threshold",
            "100",
        ),
        (
            Instance {
                health: health(HealthCheck {
                    path: "/a\r\nHost: x".into(),
                    ..Default::default()
                }),
                ..good()
            },
            "instance.health.path",
            "no spaces",
        ),
    ];
    for (instance, field, words) in cases {
        let found = faults(instance, &[], Origin::Registration);
        assert_eq!(found.len(), 1, "{field}: {found:?}");
        assert_eq!(found[0].0, field, "{found:?}");
        assert!(
            found[0].1.contains(words),
            "{field}: \"{}\" does not say {words}",
            found[0].1
        );
    }
    assert_eq!(faults(good(), &[], Origin::Registration), []);
    let several = Instance {
        service: "X".into(),
        address: "nope".into(),
        ..good()
    };
    assert_eq!(
        faults(several, &[], Origin::Registration).len(),
        2,
        "all faults come at once"
    );
}

#[test]
fn a_file_cannot_keep_alive() {
    let check = HealthCheck {
        kind: Kind::KeepAlive.into(),
        ..HealthCheck::default()
    };
    let from_file = Instance {
        health: Some(check),
        ..instance("a", "b", "127.0.0.1:1")
    };
    assert_eq!(
        faults(from_file, &[], Origin::File)[0].0,
        "instance.health.kind"
    );
}

#[test]
fn descriptors_are_checked_and_kept_byte_for_byte() {
    let one = || instance("echo", "e1", "127.0.0.1:1");
    assert_eq!(
        faults(one(), b"\x0a\xff", Origin::Registration)[0].0,
        "file_descriptor_set"
    );
    assert_eq!(
        faults(one(), b"\x10\x01", Origin::Registration)[0].0,
        "file_descriptor_set"
    );
    let large = vec![0; 4 * 1024 * 1024 + 1];
    assert!(
        faults(one(), &large, Origin::Registration)[0]
            .1
            .contains("4 MiB")
    );

    let set = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let unnamed = Instance {
        protos: vec![],
        ..one()
    };
    let checked = check(unnamed, &set, Origin::Registration, &|_| true).unwrap();
    assert_eq!(checked.schema.unwrap().bytes, set);
    let echo = checked
        .protos
        .iter()
        .find(|p| p.name == "heddle.echo.v1.Echo")
        .expect("found in the descriptors");
    assert_eq!(echo.idempotent_methods, ["Unary"]);
}

/// Issue 10, B1: what is listed or named is served; other services of the same files are only schema.
#[test]
fn what_is_served_is_listed_or_named_or_else_the_given_set() {
    let schema = Schema::parse(Bytes::from_static(heddle_proto::DESCRIPTOR_SET)).unwrap();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let known = |named: &[&str], given: bool, listed: Option<&[&str]>| {
        let given = Declared {
            named: names(named),
            schema: given.then(|| schema.clone()),
        };
        let reflected = listed.map(|listed| Reflected {
            names: names(listed),
            schema: Some(schema.clone()),
        });
        let protos = Served::of(&given, reflected.as_ref()).protos;
        let served = protos.into_iter();
        served
            .map(|p| (p.name, p.idempotent_methods.len()))
            .collect::<Vec<_>>()
    };
    let echo = ("heddle.echo.v1.Echo".to_owned(), 1);
    let other = ("other.Service".to_owned(), 0);
    let both = [echo.clone(), other.clone()];
    for (named, given, listed, expect) in [
        (&["other.Service", &*echo.0][..], true, None, &both[..]),
        // Listed with another service of its file, one without descriptors, and one that every server has.
        (
            &[],
            false,
            Some(&["other.Service", &*echo.0, "grpc.health.v1.Health"][..]),
            &both,
        ),
        (&["other.Service"], false, Some(&[&*echo.0]), &both),
        (&["other.Service"], true, Some(&[&*echo.0]), &both),
        (&["other.Service"], false, None, &both[1..]),
        (&[], true, Some(&[&*echo.0]), &both[..1]),
        (&[], true, Some(&[]), &[]),
    ] {
        assert_eq!(
            known(named, given, listed),
            expect,
            "{named:?} {given} {listed:?}"
        );
    }
    let all = known(&[], true, None);
    assert!(all.len() > 3 && all.contains(&echo), "{all:?}");
}

/// Issue 10, B1: a set's own services are served, but not those that only came with an import.
#[test]
fn services_of_imported_well_known_files_are_not_what_a_set_is_for() {
    let file = |name: &str, package: &str, imports: &[&str]| FileDescriptorProto {
        name: Some(name.into()),
        package: Some(package.into()),
        dependency: imports.iter().map(|&it| it.to_owned()).collect(),
        service: vec![ServiceDescriptorProto {
            name: Some("S".into()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let set = FileDescriptorSet {
        file: vec![
            file("operations.proto", "google.longrunning", &[]),
            file("types.proto", "shop.types", &[]),
            file("shop.proto", "shop", &["operations.proto", "types.proto"]),
            file("pubsub.proto", "google.pubsub", &[]),
        ],
    };
    let schema = Schema::parse(set.encode_to_vec().into()).unwrap();
    let own: Vec<_> = schema.own_services().collect();
    assert_eq!(own, ["shop.types.S", "shop.S", "google.pubsub.S"]);
    assert_eq!(schema.services().len(), 4);
}

/// Issue 10, D1: the memory that a set takes is bounded, not only its bytes.
#[test]
fn a_set_of_nothing_but_names_is_refused_by_what_it_costs() {
    let file = |messages: usize, package: &str| {
        let message = |number: usize| DescriptorProto {
            name: Some(format!("M{number}")),
            ..Default::default()
        };
        let file = FileDescriptorProto {
            name: Some("dense.proto".into()),
            package: Some(package.into()),
            message_type: (0..messages).map(message).collect(),
            ..Default::default()
        };
        FileDescriptorSet { file: vec![file] }
            .encode_to_vec()
            .into()
    };
    let dense: Bytes = file(300_000, "p");
    assert!(dense.len() < MAX_SCHEMA_BYTES);
    let refused = Schema::parse(dense).unwrap_err();
    assert_eq!(refused, SchemaError::TooCostly);
    assert!(Schema::parse(file(20_000, "p")).is_ok());
    // Every name repeats its package.
    let refused = Schema::parse(file(20_000, &"p".repeat(1000))).unwrap_err();
    assert_eq!(refused, SchemaError::TooCostly);
}

#[test]
fn equal_files_have_an_equal_hash_in_whatever_order_they_came() {
    let set = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let raw: std::collections::BTreeMap<String, Bytes> = files(&set)
        .unwrap()
        .into_iter()
        .map(|f| (f.index.name.clone(), f.bytes))
        .collect();
    let made = Schema::from_files(&raw).unwrap();
    let order: Vec<_> = files(&made.bytes)
        .unwrap()
        .iter()
        .map(|f| f.index.name.clone())
        .collect();
    assert_eq!(order.len(), raw.len());
    for file in files(&made.bytes).unwrap() {
        assert_eq!(raw[&file.index.name], file.bytes, "kept byte for byte");
        let at = order.iter().position(|n| *n == file.index.name).unwrap();
        for import in &file.index.imports {
            assert!(
                order.iter().position(|n| n == import).unwrap() < at,
                "{import} stands after its user"
            );
        }
    }
    assert_eq!(Schema::from_files(&raw).unwrap().sha256, made.sha256);
}

#[test]
fn an_ipv4_address_written_as_ipv6_is_taken_as_what_it_is() {
    let own = |ip: std::net::IpAddr| ip.is_loopback();
    let check = |address| {
        let instance = instance("users", "u1", address);
        check(instance, &Bytes::new(), Origin::Registration, &own).map(|c| c.instance.address)
    };
    assert_eq!(check("[::ffff:127.0.0.1]:7001").unwrap(), "127.0.0.1:7001");
    assert_eq!(check("[::1]:7001").unwrap(), "[::1]:7001");
    assert!(check("[::ffff:0.0.0.0]:7001").is_err());
}
