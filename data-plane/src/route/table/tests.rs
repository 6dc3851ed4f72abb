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
    let replica = table.replica();
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
    assert_eq!(names(table.claim("f.F", "zoo")), ["fish.zoo", "goat.zoo"]);
    assert_eq!(names(table.claim("f.F", "shop")), ["echo.shop"]);
    assert_eq!(names(table.claim("x.X", "shop")), [""; 0]);
}

#[test]
fn a_deserted_service_gives_way_in_its_namespace_only() {
    let endpoint = Arc::new(Endpoint {
        health: crate::balance::Health::Draining,
        ..Endpoint::of_test(1)
    });
    let mut builder = RouteTable::builder("a", &[]);
    for (name, namespace, instances) in [
        ("old", "default", 0),
        ("new", "default", 1),
        ("old", "shop", 0),
    ] {
        let mut service = Service::new(name, namespace);
        service.protos = vec![ProtoService {
            name: "e.E".to_owned(),
            ..Default::default()
        }];
        service.endpoints = Arc::new(EndpointSet {
            endpoints: vec![Arc::clone(&endpoint); instances],
        });
        builder.service(service);
    }
    let table = builder.build();
    assert_eq!(names(table.claim("e.E", "default")), ["new.default"]);
    // A call must not stray into another namespace because its own is empty for a moment.
    assert_eq!(names(table.claim("e.E", "shop")), ["old.shop"]);
    assert_eq!(names(table.claim("e.E", "zoo")), ["new.default"]);
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
    for table in [table.replica(), table] {
        let service = table.service("echo.default").unwrap();
        let uids: Vec<u64> = service.locals.iter().map(|e| e.uid).collect();
        assert_eq!(uids, [3]);
        let found = ["e1", "e2", "e3"].map(|id| service.local_uid(id));
        assert_eq!(found, [None, None, Some(3)]);
    }
}
