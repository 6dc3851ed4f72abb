mod changes;
mod shape;

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster},
            core::v3::{HealthStatus, address, socket_address},
            endpoint::v3::{ClusterLoadAssignment, lb_endpoint},
            listener::v3::Listener,
            route::v3::{RouteConfiguration, route, route_action, route_match},
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
        service::discovery::v3::Resource as WrappedResource,
    },
    google::protobuf::{Any, value},
};
use heddle_proto::{registry::v1::Protocol, xds::v1::ServiceIndex};
use prost::Message;

use super::{
    fixture::{Mesh, proto},
    *,
};

fn decode<M: Message + Default>(resource: &Resource) -> M {
    let any = Any::decode(resource.any()).unwrap();
    assert_eq!(any.type_url, resource.kind.url());
    let wrapped = WrappedResource::decode(resource.wrapped()).unwrap();
    assert_eq!(wrapped.name, *resource.name);
    assert_eq!(wrapped.version, *resource.version);
    assert_eq!(wrapped.resource.unwrap(), any);
    M::decode(any.value.as_slice()).unwrap()
}

fn get<M: Message + Default>(snapshot: &Snapshot, kind: Kind, audience: Audience, name: &str) -> M {
    decode(snapshot.get(kind, audience, name).unwrap())
}

/// "address=STATUS" of each endpoint.
fn endpoints(snapshot: &Snapshot, audience: Audience, name: &str) -> Vec<String> {
    let assignment: ClusterLoadAssignment = get(snapshot, Kind::Endpoint, audience, name);
    let mut found = Vec::new();
    for endpoint in assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints)
    {
        let Some(lb_endpoint::HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
            panic!("{endpoint:?}");
        };
        let Some(address::Address::SocketAddress(socket)) = host
            .address
            .as_ref()
            .and_then(|address| address.address.as_ref())
        else {
            panic!("{host:?}");
        };
        let Some(socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else {
            panic!("{socket:?}");
        };
        let status = HealthStatus::try_from(endpoint.health_status).unwrap();
        found.push(format!(
            "{}:{port}={}",
            socket.address,
            status.as_str_name()
        ));
    }
    found
}

#[test]
fn one_changed_endpoint_encodes_one_assignment() {
    let mut mesh = Mesh::new();
    for service in 0..20 {
        for instance in 0..5 {
            mesh.put(
                &format!("a/s{service}/i{instance}"),
                &format!("10.0.{service}.{instance}:80"),
            );
        }
    }
    let first = mesh.snapshot();
    let touch = |snapshot: &Snapshot| {
        for _stream in 0..3 {
            for resource in snapshot.table(Kind::Endpoint, Audience::Proxy).values() {
                assert!(resource.size() > 0);
            }
        }
    };
    touch(&first);
    let before = Kind::ALL.map(|kind| mesh.encodes.of(kind));
    assert_eq!(mesh.encodes.of(Kind::Endpoint), 20);
    mesh.put("a/s7/i3", "10.9.9.9:80");
    let second = mesh.snapshot();
    touch(&second);
    let after = Kind::ALL.map(|kind| mesh.encodes.of(kind));
    let made: Vec<_> = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect();
    assert_eq!(made, [0, 1, 0, 0, 0, 0]);
    let step: Vec<_> = second.steps_since(first.generation).unwrap().collect();
    assert_eq!(step.len(), 1);
    assert_eq!(
        *step[0].of(Kind::Endpoint),
        BTreeSet::from(["s7.default".into()])
    );
}

#[test]
fn versions_depend_on_content_only() {
    let mut grown = Mesh::new();
    grown.put("b/users/2", "10.0.0.2:80").protos =
        vec![proto("u.Users", &["Get"]), proto("u.Admin", &[])];
    grown.snapshot();
    grown.put("a/users/9", "10.0.0.9:80");
    grown.snapshot();
    grown.put("a/orders.shop/1", "10.0.0.3:80");
    grown.put("a/users/1", "10.0.0.1:80").protos = vec![proto("u.Users", &["Get", "Put"])];
    grown.remove("a/users/9");
    let grown = grown.snapshot();

    let mut fresh = Mesh::new();
    fresh.put("a/users/1", "10.0.0.1:80").protos = vec![proto("u.Users", &["Put", "Get"])];
    fresh.put("b/users/2", "10.0.0.2:80").protos =
        vec![proto("u.Admin", &[]), proto("u.Users", &["Get"])];
    fresh.put("a/orders.shop/1", "10.0.0.3:80");
    let fresh = fresh.snapshot();

    for kind in Kind::ALL {
        for audience in Audience::ALL {
            let versions = |snapshot: &Snapshot| {
                snapshot
                    .table(kind, audience)
                    .values()
                    .map(|each| (each.name.to_string(), each.version.to_string()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                versions(&grown),
                versions(&fresh),
                "{kind:?} for {audience:?}"
            );
        }
    }
    let index: ServiceIndex = get(&fresh, Kind::ServiceIndex, Audience::Proxy, "users.default");
    assert_eq!(
        index.protos,
        [proto("u.Admin", &[]), proto("u.Users", &["Get"])]
    );
}

#[test]
fn whatever_clients_see_changes_the_version() {
    let version = |change: fn(&mut Mesh), audience: Audience| {
        let mut mesh = Mesh::new();
        mesh.put("a/users/1", "10.0.0.1:80");
        change(&mut mesh);
        let snapshot = mesh.snapshot();
        let resource = snapshot
            .get(Kind::Endpoint, audience, "users.default")
            .unwrap();
        resource.version.to_string()
    };
    let for_all: [fn(&mut Mesh); 5] = [
        |mesh| drop(mesh.put("a/users/1", "10.0.0.1:81").clone()),
        |mesh| mesh.put("a/users/1", "10.0.0.1:80").health = 2,
        |mesh| {
            mesh.put("a/users/1", "10.0.0.1:80")
                .instance
                .as_mut()
                .unwrap()
                .weight = 7;
        },
        |mesh| mesh.node("a").region = "r".to_owned(),
        |mesh| mesh.node("a").zone = "z".to_owned(),
    ];
    let for_proxies: [fn(&mut Mesh); 2] = [
        |mesh| {
            let local = mesh.put("a/users/1", "10.0.0.1:80");
            local.instance.as_mut().unwrap().version = "v2".to_owned();
        },
        |mesh| mesh.node("a").advertise = "10.0.0.7:15008".to_owned(),
    ];
    let for_nobody: fn(&mut Mesh) =
        |mesh| mesh.put("a/users/1", "10.0.0.1:80").health_reason = "fine".to_owned();
    for audience in Audience::ALL {
        let plain = version(|_| {}, audience);
        let mut seen = BTreeSet::from([plain.clone()]);
        for change in for_all {
            assert!(seen.insert(version(change, audience)));
        }
        for change in for_proxies {
            let news = seen.insert(version(change, audience));
            assert_eq!(news, audience == Audience::Proxy);
        }
        assert_eq!(version(for_nobody, audience), plain);
    }
}

/// Issue 10, B1: every proxy can give the reason why a call by path finds no service.
#[test]
fn the_index_says_why_proto_services_are_unknown_and_only_then() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80").schema_reason = "no reflection: name them".to_owned();
    let index = |snapshot: &Snapshot| -> ServiceIndex {
        get(
            snapshot,
            Kind::ServiceIndex,
            Audience::Proxy,
            "users.default",
        )
    };
    assert_eq!(
        index(&mesh.snapshot()).schema_reason,
        "no reflection: name them"
    );
    // Only its descriptors are missing: calls by path find it.
    mesh.put("a/users/1", "10.0.0.1:80").protos = vec![proto("u.Users", &[])];
    let known = index(&mesh.snapshot());
    assert_eq!((known.protos.len(), &*known.schema_reason), (1, ""));
}

#[test]
fn every_audience_gets_what_it_can_reach() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "127.0.0.1:1001");
    mesh.put("b/users/2", "127.0.0.1:1002").health = 2;
    mesh.put("far/users/3", "127.0.0.1:1003");
    mesh.put("far/users/4", "10.0.0.9:1004").health = 3;
    mesh.put("a/users/5", "10.0.0.9:1004"); // the same address twice: a proxy distinguishes them by id
    let snapshot = mesh.snapshot();
    let name = "users.default";
    assert_eq!(
        endpoints(&snapshot, Audience::Proxy, name),
        [
            "127.0.0.1:1001=HEALTHY",
            "10.0.0.9:1004=HEALTHY",
            "127.0.0.1:1002=UNHEALTHY",
            "127.0.0.1:1003=HEALTHY",
            "10.0.0.9:1004=DRAINING",
        ]
    );
    assert_eq!(
        endpoints(&snapshot, Audience::DirectLocal, name),
        [
            "127.0.0.1:1001=HEALTHY",
            "10.0.0.9:1004=HEALTHY",
            "127.0.0.1:1002=UNHEALTHY"
        ]
    );
    assert_eq!(
        endpoints(&snapshot, Audience::DirectRemote, name),
        ["10.0.0.9:1004=HEALTHY"]
    );

    let hidden = hidden_from_direct_clients(&mesh.view(), &"users".parse_name());
    let hidden: Vec<_> = hidden
        .iter()
        .map(|((node, id), why)| format!("{node}/{id}: {why}"))
        .collect();
    assert_eq!(
        hidden,
        [
            "far/3: 127.0.0.1:1003 is a loopback address, and node far reaches the control plane from elsewhere",
            "far/4: it is draining; clients that connect to instances directly would still call it if there were no other",
        ]
    );
}

trait ParseName {
    fn parse_name(&self) -> crate::names::ServiceName;
}
impl ParseName for str {
    fn parse_name(&self) -> crate::names::ServiceName {
        crate::names::ServiceName::parse(self).unwrap()
    }
}

#[test]
fn instances_of_a_suspect_node_are_unknown() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.node("a").suspect = true;
    let snapshot = mesh.snapshot();
    assert_eq!(
        endpoints(&snapshot, Audience::DirectRemote, "users.default"),
        ["10.0.0.1:80=UNKNOWN"]
    );
}

#[test]
fn a_service_without_instances_keeps_its_place() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    let first = mesh.snapshot();
    mesh.remove("a/users/1");
    let second = mesh.snapshot();
    assert_eq!(
        endpoints(&second, Audience::DirectLocal, "users.default"),
        [""; 0]
    );
    let step: Vec<_> = second.steps_since(first.generation).unwrap().collect();
    let changed: Vec<_> = Kind::ALL
        .iter()
        .map(|&kind| step[0].of(kind).len())
        .collect();
    assert_eq!(changed, [0, 1, 0, 0, 0, 0], "only its endpoints");
    let third = mesh.forget("users.default");
    for kind in Kind::ALL {
        for audience in Audience::ALL {
            let left: Vec<_> = third
                .table(kind, audience)
                .keys()
                .map(|name| &**name)
                .collect();
            assert_eq!(
                left,
                if kind == Kind::Route {
                    vec![OUTBOUND]
                } else {
                    vec![]
                }
            );
        }
    }
}

#[test]
fn an_unresolved_reference_is_found() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.put("a/orders/1", "10.0.0.2:80");
    let mut snapshot = (*mesh.snapshot()).clone();
    let published = snapshot.generation;
    take_cluster(&mut snapshot, "users.default");
    let faults: Vec<_> = check(&snapshot, published)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        faults,
        [
            "route heddle/outbound points at cluster users.default, which does not exist",
            "route users.default points at cluster users.default, which does not exist",
            "service_index users.default points at cluster users.default, which does not exist",
        ]
    );
}

/// Simulates a bug of the builder: a cluster is removed, and what refers to it stays.
fn take_cluster(snapshot: &mut Snapshot, name: &str) {
    let name: Arc<str> = name.into();
    assert!(snapshot.set(Kind::Cluster, Audience::Proxy, &name, None));
    let mut changed = Changed::default();
    changed.insert(Kind::Cluster, name);
    snapshot.step(99, changed);
}

/// Issue 10, D2: the check covered only the last step, so that a refused snapshot was published with the next change of
/// anything else.
#[test]
fn an_unresolved_reference_is_found_until_it_is_fixed_whatever_else_changes() {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.put("a/orders/1", "10.0.0.2:80");
    let mut snapshot = (*mesh.snapshot()).clone();
    let published = snapshot.generation;
    let cluster = snapshot
        .get(Kind::Cluster, Audience::Proxy, "users.default")
        .cloned();
    take_cluster(&mut snapshot, "users.default");
    let faults = check(&snapshot, published);
    assert_eq!(faults.len(), 3);
    // The same after more steps than a snapshot keeps.
    for round in 0..70 {
        let mut changed = Changed::default();
        changed.insert(Kind::Endpoint, "orders.default".into());
        snapshot.step(100 + round, changed);
        let found = check(&snapshot, published);
        assert!(
            faults.iter().all(|fault| found.contains(fault)),
            "{found:?}"
        );
    }
    let name: Arc<str> = "users.default".into();
    assert!(snapshot.set(Kind::Cluster, Audience::Proxy, &name, cluster));
    let mut changed = Changed::default();
    changed.insert(Kind::Cluster, name);
    snapshot.step(200, changed);
    assert_eq!(check(&snapshot, published), []);
}

#[test]
fn a_stream_that_fell_too_far_behind_is_notified() {
    let mut mesh = Mesh::new();
    let first = mesh.snapshot();
    for round in 0..64 {
        mesh.put("a/users/1", &format!("10.0.0.{round}:80"));
        mesh.snapshot();
    }
    let last = mesh.builder.snapshot().clone();
    assert_eq!(
        last.steps_since(first.generation).map(Iterator::count),
        Some(64)
    );
    assert_eq!(
        last.steps_since(last.generation).map(Iterator::count),
        Some(0)
    );
    mesh.put("a/users/1", "10.0.1.1:80");
    assert!(mesh.snapshot().steps_since(first.generation).is_none());
}
