use proptest::prelude::*;

use super::*;
use crate::{
    balance::endpoints::{Endpoint, EndpointSet},
    route::table::{ProtoService, Service},
};

fn table() -> RouteTable {
    let mut builder = RouteTable::builder("Node-A", &["mesh.Example.org".to_owned()]);
    for (service, namespace, protos) in [
        ("users", "default", &["flack.Users"][..]),
        ("users", "shop", &["shop.Users"]),
        ("usher", "default", &["dup.Dup"]),
        ("other", "default", &["dup.Dup"]),
    ] {
        let mut service = Service::new(service, namespace);
        service.protos = protos
            .iter()
            .map(|name| ProtoService {
                name: (*name).to_owned(),
                ..Default::default()
            })
            .collect();
        // Without an instance, another claimant could stand in.
        service.endpoints = Arc::new(EndpointSet {
            endpoints: vec![Arc::new(Endpoint::of_test(1))],
        });
        builder.service(service);
    }
    builder.build()
}

fn is_own(authority: &str) -> bool {
    let authority = authority.to_ascii_lowercase();
    ["node-a", "mesh.example.org"]
        .iter()
        .any(|own| authority.starts_with(own))
}

fn check(authority: &str, path: &str, expect: &str) {
    let table = table();
    let found = match route(
        &table,
        &Caller::of_test(),
        Some(authority.as_bytes()),
        path.as_bytes(),
        CallPolicy::of_test(),
    ) {
        Decision::Route(route) => {
            // The rule is reported, and the policy is the given one.
            let by_path = is_literal(host_of(authority.as_bytes())) || is_own(authority);
            let rule = if by_path { Rule::Path } else { Rule::Authority };
            assert_eq!(
                (route.rule, route.policy),
                (rule, CallPolicy::of_test()),
                "{authority}"
            );
            route.service.name.to_string()
        }
        Decision::Internal => "internal".to_owned(),
        Decision::Ambiguous(_) => "ambiguous".to_owned(),
        Decision::NoRoute => "none".to_owned(),
    };
    assert_eq!(found, expect, "{authority} {path}");
}

#[test]
fn authorities_name_services() {
    for (authority, expect) in [
        ("users", "users.default"),
        ("USERS", "users.default"),
        ("users:50051", "users.default"),
        ("users.default", "users.default"),
        ("users.shop", "users.shop"),
        ("users.shop:1", "users.shop"),
        ("users.shop.mesh", "users.shop"),
        ("users.shop.mesh.:80", "users.shop"),
        ("users.", "users.default"),
        ("USERS.Shop.", "users.shop"),
        ("users..", "none"),
        ("[fe80::1%]", "none"),
        ("[users%eth0]", "none"),
        ("users.shop.meshy", "none"),
        ("users.shop.mesh.more", "none"),
        ("userz", "none"),
        ("shop", "none"),
        ("1.2.3", "none"),
        (".", "none"),
    ] {
        // The path would lead to users.shop: an unknown name must not fall back to it.
        check(authority, "/shop.Users/Get", expect);
    }
}

#[test]
fn literals_and_own_names_route_by_proto_service() {
    for authority in [
        "127.0.0.1:15001",
        "10.1.2.3",
        "[::1]:15001",
        "[::1]",
        "localhost",
        "LOCALHOST:1",
        "node-a",
        "NODE-A:9",
        "mesh.example.org",
        "mesh.example.org.",
        "node-a.:9",
        "localhost.",
        "localhost.:15001",
        "127.0.0.1.",
        "[fe80::1%25eth0]:15001",
        "[fe80::1%eth0]",
        "",
    ] {
        check(authority, "/flack.Users/Get", "users.default");
        check(authority, "/shop.Users/Get", "users.shop");
        check(authority, "/dup.Dup/Get", "ambiguous");
        check(authority, "/none.None/Get", "none");
        check(authority, "/flack.Users", "none");
        check(authority, "/", "none");
        check(authority, "/grpc.health.v1.Health/Check", "internal");
        check(
            authority,
            "/grpc.reflection.v1alpha.ServerReflection/X",
            "internal",
        );
    }
    check("users", "/grpc.health.v1.Health/Check", "users.default");
}

#[test]
fn sentences_name_what_is_wrong_and_what_to_do() {
    let table = table();
    let text = explain_no_route(&table, &Caller::of_test(), Some(b"userz:1"), b"/a.B/C");
    assert!(
        text.contains("userz.default") && text.contains("users.default"),
        "{text}"
    );
    let text = explain_no_route(&table, &Caller::of_test(), Some(b"::1"), b"/a.B/C");
    assert!(text.contains("the authority \"::1\" names"), "{text}");
    let text = explain_no_route(
        &table,
        &Caller::of_test(),
        Some(b"127.0.0.1"),
        b"/flack.User/C",
    );
    assert!(
        text.contains("flack.User;") && text.contains("nearest: flack.Users"),
        "{text}"
    );
    let text = explain_no_route(&table, &Caller::of_test(), None, b"/nothing.like.It/C");
    assert!(text.ends_with("implements nothing.like.It"), "{text}");
    let empty = RouteTable::builder("node-a", &[]).build();
    let text = explain_no_route(&empty, &Caller::of_test(), None, b"/nothing.like.It/C");
    assert!(text.ends_with("no proto service is known yet"), "{text}");
    let Decision::Ambiguous(services) = route(
        &table,
        &Caller::of_test(),
        None,
        b"/dup.Dup/Get",
        CallPolicy::of_test(),
    ) else {
        panic!("not ambiguous");
    };
    let text = explain_ambiguous(services, b"/dup.Dup/Get");
    assert!(
        text.contains("other.default, usher.default") && text.contains("-authority"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn an_ipv4_address_is_what_the_standard_library_takes_for_one(text in "[0-9]{0,4}(\\.[0-9]{0,4}){2,4}") {
        let parsed = text.parse::<std::net::Ipv4Addr>();
        prop_assert_eq!(is_v4(text.as_bytes()), parsed.is_ok(), "{}", text);
    }

    #[test]
    fn no_input_panics(authority in proptest::collection::vec(any::<u8>(), 0..300), path in proptest::collection::vec(any::<u8>(), 0..300)) {
        let table = table();
        let _ = route(&table, &Caller::of_test(), Some(&authority), &path, CallPolicy::of_test());
        let _ = explain_no_route(&table, &Caller::of_test(), Some(&authority), &path);
    }
}

/// Issue 10, B1: the services that may be meant, with the reason, in a message of limited length.
#[test]
fn services_that_may_implement_anything_are_named_with_the_reason() {
    let mut builder = RouteTable::builder("a", &[]);
    for number in 0..5 {
        let mut service = Service::new(&format!("s{number}"), "default");
        service.protos_unknown = "it has no reflection: name them".into();
        builder.service(service);
    }
    let mut known = Service::new("known", "default");
    known.protos.push(ProtoService {
        name: "k.K".to_owned(),
        ..Default::default()
    });
    builder.service(known);
    let text = explain_no_route(&builder.build(), &Caller::of_test(), None, b"/a.B/C");
    let expect = "the proto services of these services are unknown: s0.default (it has no reflection), \
        s1.default (it has no reflection), s2.default (it has no reflection) and 2 more; name them with";
    assert!(text.contains(expect), "{text}");
    let all_known = explain_no_route(&table(), &Caller::of_test(), None, b"/a.B/C");
    assert!(!all_known.contains("unknown"), "{all_known}");
}
