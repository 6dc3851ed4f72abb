use super::*;

fn table(services: &[(&str, &str, &[&str])]) -> RouteTable {
    let mut builder = RouteTable::builder("a", &[]);
    for (service, namespace, protos) in services {
        let mut service = Service::new(service, namespace);
        service.protos = protos
            .iter()
            .map(|name| ProtoService {
                name: (*name).to_owned(),
                ..Default::default()
            })
            .collect();
        service.endpoints = Arc::new(EndpointSet {
            endpoints: vec![Arc::new(Endpoint::of_test(1))],
        });
        builder.service(service);
    }
    builder.build()
}

#[test]
fn a_replica_is_equal_and_shares_nothing_that_is_counted() {
    let table = table(&[
        ("echo", "default", &["e.E"]),
        ("fish", "zoo", &["e.E", "f.F"]),
    ]);
    let replica = table.copy_for_worker();
    let claims = |table: &RouteTable| {
        (
            names(table.claim("e.E", "x")),
            names(table.claim("f.F", "x")),
        )
    };
    assert_eq!(claims(&replica), claims(&table));
    let (one, other) = (
        table.service("fish.zoo").unwrap(),
        replica.service("fish.zoo").unwrap(),
    );
    assert!(!Arc::ptr_eq(one, other) && !Arc::ptr_eq(&one.name, &other.name));
    assert_eq!(one.endpoints, other.endpoints);
}

fn names(claim: Claim<'_>) -> Vec<String> {
    match claim {
        Claim::None => vec![],
        Claim::One(one) => vec![one.name.to_string()],
        Claim::Many(many) => many.iter().map(|s| s.name.to_string()).collect(),
    }
}

#[test]
fn the_callers_namespace_comes_first() {
    let table = table(&[
        ("echo", "default", &["e.E"]),
        ("echo", "shop", &["e.E", "f.F"]),
        ("fish", "zoo", &["f.F"]),
        ("goat", "zoo", &["f.F"]),
    ]);
    assert_eq!(names(table.claim("e.E", "default")), ["echo.default"]);
    assert_eq!(names(table.claim("e.E", "shop")), ["echo.shop"]);
    assert_eq!(
        names(table.claim("e.E", "zoo")),
        ["echo.default", "echo.shop"]
    );
    assert_eq!(
        names(table.claim("f.F", "zoo")),
        ["fish.zoo", "goat.zoo"],
        "an older control plane gives no order"
    );
    assert_eq!(names(table.claim("f.F", "shop")), ["echo.shop"]);
    assert_eq!(names(table.claim("x.X", "shop")), [""; 0]);
}

/// Services that implement `e.E`: name, namespace, the rank of their claim, and their number of instances.
fn claiming(services: &[(&str, &str, Option<Rank>, usize)]) -> RouteTable {
    let endpoint = Arc::new(Endpoint {
        health: Health::Draining,
        ..Endpoint::of_test(1)
    });
    let mut builder = RouteTable::builder("a", &[]);
    for (name, namespace, claim, instances) in services {
        let mut service = Service::new(name, namespace);
        service.protos = vec![ProtoService {
            name: "e.E".to_owned(),
            claim: *claim,
            ..Default::default()
        }];
        service.endpoints = Arc::new(EndpointSet {
            endpoints: vec![Arc::clone(&endpoint); *instances],
        });
        builder.service(service);
    }
    builder.build()
}

/// Issue 10, B2: in each namespace the first claim owns the path.
#[test]
fn the_oldest_claim_of_a_namespace_owns_the_path() {
    let since = |revision| Some(Rank::Since(revision));
    let table = claiming(&[
        ("a-canary", "default", since(9), 1),
        ("users", "default", since(7), 1),
        ("users", "shop", since(1), 1),
        ("quiet", "zoo", None, 1),
    ]);
    for table in [table.copy_for_worker(), table] {
        assert_eq!(names(table.claim("e.E", "default")), ["users.default"]);
        assert_eq!(names(table.claim("e.E", "shop")), ["users.shop"]);
        let others = names(table.claim("e.E", "zoo"));
        assert_eq!(
            others,
            ["users.default", "users.shop"],
            "who claims nothing is none"
        );
        let owner = |namespace| {
            table
                .path_owner("e.E", namespace)
                .map(|it| it.name.to_string())
        };
        assert_eq!(owner("default").as_deref(), Some("users.default"));
        assert_eq!(owner("zoo"), None);
        let unclaimed: Vec<_> = table.unclaimed("e.E").map(|it| &*it.name).collect();
        assert_eq!(unclaimed, ["quiet.zoo"]);
        assert!(table.proto_services().any(|name| name == "e.E"));
    }
}

/// Issue 10, B2: claims of services without instances do not block others.
#[test]
fn an_owner_without_instances_keeps_its_path_and_another_stands_in() {
    let since = |revision| Some(Rank::Since(revision));
    let table = claiming(&[
        ("canary", "default", since(9), 1),
        ("users", "default", since(7), 0),
        ("one", "shop", since(2), 0),
        ("two", "shop", since(3), 0),
    ]);
    for table in [table.copy_for_worker(), table] {
        assert_eq!(names(table.claim("e.E", "default")), ["canary.default"]);
        let owner = table.path_owner("e.E", "default").unwrap();
        assert_eq!(&*owner.name, "users.default");
        // None of them can answer: the owner reports that, and the call does not leave its namespace.
        assert_eq!(names(table.claim("e.E", "shop")), ["one.shop"]);
        assert_eq!(names(table.claim("e.E", "zoo")), ["canary.default"]);
    }
}

/// Issue 10, B2: claims of services whose instances have gone are nobody's obstacle.
#[test]
fn a_service_without_instances_gives_way_but_no_call_leaves_its_namespace() {
    let unordered = Some(Rank::Unordered);
    let table = claiming(&[
        ("old", "default", unordered, 0),
        ("new", "default", unordered, 1),
        ("old", "shop", unordered, 0),
    ]);
    assert_eq!(names(table.claim("e.E", "default")), ["new.default"]);
    // A call must not go to another namespace because its own has no instance for a moment.
    assert_eq!(names(table.claim("e.E", "shop")), ["old.shop"]);
    assert_eq!(names(table.claim("e.E", "zoo")), ["new.default"]);
    let since = |revision| Some(Rank::Since(revision));
    // Several other namespaces: the caller's own reports that it has no instance.
    let table = claiming(&[
        ("users", "default", since(1), 0),
        ("users", "ns1", since(2), 1),
        ("users", "ns2", since(3), 1),
        ("users", "ns3", since(3), 0),
    ]);
    assert_eq!(names(table.claim("e.E", "default")), ["users.default"]);
    assert_eq!(names(table.claim("e.E", "zoo")), ["users.ns1", "users.ns2"]);
}

/// Issue 10, B2: a call that no service can answer fails for want of an instance, and is not ambiguous.
#[test]
fn of_stopped_services_of_other_namespaces_the_oldest_reports_it() {
    let since = |revision| Some(Rank::Since(revision));
    let table = claiming(&[("u1", "ns1", since(9), 0), ("u2", "ns2", since(7), 0)]);
    for table in [table.copy_for_worker(), table] {
        assert_eq!(names(table.claim("e.E", "default")), ["u2.ns2"]);
        assert_eq!(names(table.claim("e.E", "ns1")), ["u1.ns1"]);
    }
}

#[test]
fn calls_of_other_nodes_go_to_instances_here_that_take_calls() {
    use crate::balance::Health;
    let address = "127.0.0.1:1".parse().unwrap();
    let endpoint = |uid, target, health| {
        Arc::new(Endpoint {
            target,
            health,
            ..Endpoint::of_test(uid)
        })
    };
    let mut service = Service::new("echo", "default");
    service.endpoints = Arc::new(EndpointSet {
        endpoints: vec![
            endpoint(1, Target::Node(address), Health::Healthy),
            endpoint(2, Target::Local(address), Health::Draining),
            endpoint(3, Target::Local(address), Health::Unknown),
        ],
    });
    let mut builder = RouteTable::builder("a", &[]);
    builder.service(service);
    let table = builder.build();
    for table in [table.copy_for_worker(), table] {
        let service = table.service("echo.default").unwrap();
        let uids: Vec<u64> = service.locals.iter().map(|e| e.uid).collect();
        assert_eq!(uids, [3]);
        let found = ["e1", "e2", "e3"].map(|id| service.local_uid(id));
        assert_eq!(found, [None, None, Some(3)]);
    }
}
