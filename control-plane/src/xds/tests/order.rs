use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, Resource as WrappedResource,
};
use prost::Message as _;

use super::{super::*, clients::*};
use crate::snapshot::{
    Audience, Encodes, Kind,
    fixture::{Mesh, proto},
    outbound_listener,
};

#[test]
fn one_response_is_under_way_and_changes_meanwhile_go_together() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"], &[]);
    client.pump();
    for round in 0..10 {
        mesh.put("a/users/1", &format!("10.1.0.{round}:80"));
        client.see(&mesh.snapshot());
        assert!(client.pump().is_empty());
    }
    client.log.clear();
    client.ack(Kind::Endpoint).pump();
    assert_eq!(client.log, ["endpoint +users.default"]);
}

#[test]
fn clusters_go_after_the_routes_that_used_them() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client
        .subscribe(Kind::Cluster, &[], &[])
        .subscribe(Kind::ServiceIndex, &[], &[]);
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"], &[]);
    client.subscribe(Kind::Listener, &["users"], &[]).subscribe(
        Kind::Route,
        &["users.default"],
        &[],
    );
    client.settle();
    client.see(&mesh.forget("users.default"));
    client.log.clear();
    client.pump();
    assert_eq!(
        client.log,
        [
            "listener -users",
            "route -users.default",
            "service_index -users.default"
        ]
    );
    client.ack(Kind::Listener).ack(Kind::Route).pump();
    assert_eq!(client.log.len(), 3, "the index is not acknowledged yet");
    client.ack(Kind::ServiceIndex).pump();
    assert_eq!(
        client.log[3..],
        ["cluster -users.default", "endpoint -users.default"]
    );
}

#[test]
fn a_removal_is_not_forgotten_when_the_routes_turn_out_unchanged() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client
        .subscribe(Kind::Cluster, &[], &[])
        .subscribe(Kind::Route, &["orders.default"], &[]);
    client.pump();
    mesh.forget("orders.default");
    mesh.put("a/orders/1", "10.0.0.2:80");
    mesh.snapshot();
    client.see(&mesh.forget("users.default"));
    assert_eq!(client.settle(), ["cluster -users.default"]);
}

#[test]
fn routes_wait_for_the_clusters_that_they_use() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Cluster, &[], &[]);
    client.settle();
    client.subscribe(Kind::Route, &["new.default"], &[]);
    client.settle();
    mesh.put("a/other/1", "10.0.0.3:80");
    client.see(&mesh.snapshot()).pump();
    mesh.put("a/new/1", "10.0.0.4:80");
    client.see(&mesh.snapshot());
    assert!(
        client.pump().is_empty(),
        "clusters are under way: neither the new one nor its route"
    );
    client.log.clear();
    client.ack(Kind::Cluster).pump();
    assert_eq!(client.log, ["cluster +new.default", "route +new.default"]);
}

#[test]
fn wildcard_listeners_leave_api_listeners_out() {
    let (mut mesh, snapshot) = two_services();
    let encodes = Encodes::default();
    let mut client = DeltaClient::new(Audience::DirectLocal, Arc::clone(&snapshot));
    client.subscribe(Kind::Listener, &[], &[]);
    assert_eq!(
        client.settle(),
        ["listener"],
        "answered, with nothing in it"
    );
    mesh.put("a/later/1", "10.0.0.5:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), [""; 0]);

    let mut view = ClientView::new(Audience::DirectLocal);
    view.outbound = Some(outbound_listener(
        "127.0.0.1:9001".parse().unwrap(),
        &encodes,
    ));
    let mut envoy = DeltaClient::new(Audience::DirectLocal, Arc::clone(&snapshot));
    envoy.state = ClientState::new(view, &snapshot);
    envoy
        .subscribe(Kind::Listener, &[], &[])
        .subscribe(Kind::Route, &["heddle/outbound"], &[]);
    assert_eq!(
        envoy.settle(),
        ["listener +heddle/outbound", "route +heddle/outbound"]
    );
}

#[test]
fn a_response_over_the_bound_is_continued() {
    let mut mesh = Mesh::new();
    for service in 0..60 {
        for instance in 0..500 {
            mesh.put(
                &format!("a/s{service}/instance-{instance}"),
                &format!("10.0.{}.{}:80", instance / 250, instance % 250),
            );
        }
    }
    let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
    client.subscribe(Kind::Endpoint, &["*"], &[]);
    let responses = client.pump();
    let [(_, first)] = &responses[..] else {
        panic!()
    };
    assert!(
        first.encoded_len() < max_response_bytes(Kind::Endpoint) + 1024
            && first.resources.len() >= 2
    );
    client.ack(Kind::Endpoint);
    let acknowledged = |client: &DeltaClient, service: usize| {
        let subscription = client.state.subscription(Kind::Endpoint);
        subscription.acknowledged_at(&format!("s{service}.default"), client.snapshot.revision)
    };
    let missing = (0..60).filter(|service| acknowledged(&client, *service) == Some(false));
    assert_eq!(missing.count(), 60 - first.resources.len());
    assert!(!client.settle().is_empty());
    assert!((0..60).all(|service| acknowledged(&client, service) == Some(true)));
    assert_eq!(client.names(Kind::Endpoint).len(), 60);
}

/// Issue 10, D1.
#[test]
fn a_newer_state_of_something_large_waits_and_nothing_waits_for_it() {
    let mut mesh = Mesh::new();
    for number in 0..800 {
        let address = format!("10.0.{}.{}:80", number / 200, number % 200);
        mesh.put(&format!("a/large/i{number}"), &address);
    }
    mesh.put("a/small/1", "10.1.0.1:80");
    let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
    client.state.hold_back_large(true);
    client.subscribe(Kind::Cluster, &[], &[]);
    client.subscribe(
        Kind::Endpoint,
        &["large.default", "small.default", "new.default"],
        &[],
    );
    client.subscribe(Kind::ServiceIndex, &[], &[]);
    client.settle();
    assert_eq!(
        client.names(Kind::Endpoint),
        ["large.default", "small.default"],
        "what it does not have comes at once"
    );
    for round in 1..4 {
        mesh.put("a/large/i7", &format!("10.9.0.{round}:80"));
        mesh.put("a/small/1", &format!("10.9.1.{round}:80"));
        if round == 2 {
            mesh.put("a/new/1", "10.9.2.1:80").protos = vec![proto("n.New", &[])];
        }
        client.see(&mesh.snapshot());
        let sent = client.settle();
        let endpoints = if round == 2 {
            "endpoint +new.default +small.default"
        } else {
            "endpoint +small.default"
        };
        assert!(sent.contains(&endpoints.to_owned()), "{sent:?}");
        assert_eq!(sent.len(), if round == 2 { 3 } else { 1 }, "{sent:?}");
    }
    let acknowledged = |client: &DeltaClient, name: &str| {
        let subscription = client.state.subscription(Kind::Endpoint);
        subscription.acknowledged_at(name, client.snapshot.revision)
    };
    assert_eq!(acknowledged(&client, "small.default"), Some(true));
    assert_eq!(acknowledged(&client, "large.default"), Some(false));
    client.state.hold_back_large(false);
    assert_eq!(
        client.settle(),
        ["endpoint +large.default"],
        "once, the newest"
    );
    assert_eq!(acknowledged(&client, "large.default"), Some(true));
}

#[test]
fn hostile_names_are_refused() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    let many = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=MAX_NAMES).map(|name| name.to_string()).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let refused = client.state.on_request::<Delta>(Kind::Endpoint, &many);
    assert_eq!(refused, Err(Violation::TooManyNames(Kind::Endpoint)));
    let long = DiscoveryRequest {
        resource_names: vec!["x".repeat(MAX_NAME_BYTES + 1)],
        ..DiscoveryRequest::default()
    };
    let refused = client.state.on_request::<Sotw>(Kind::Route, &long);
    assert_eq!(
        refused,
        Err(Violation::NameTooLong {
            kind: Kind::Route,
            bytes: 513
        })
    );
}

#[test]
fn schemas_are_fetched_by_name() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    let name: Arc<str> = "ab".repeat(32).into();
    client.subscribe(Kind::Schema, &[&name], &[]);
    assert!(client.pump().is_empty(), "not known yet whether it exists");
    assert_eq!(client.state.wanted_schema(), Some(Arc::clone(&name)));
    let gone = client
        .state
        .schema_fetched::<Delta>(&snapshot, &name, None)
        .unwrap();
    assert_eq!(gone.removed_resources, [&*name]);
    client.nonces.insert(Kind::Schema, gone.nonce);
    client.ack(Kind::Schema);
    assert!(client.state.wanted_schema().is_none() && client.state.has_missing_schemas());
    client.state.retry_schemas();
    assert_eq!(client.state.wanted_schema(), Some(Arc::clone(&name)));
    let came = client
        .state
        .schema_fetched::<Delta>(&snapshot, &name, Some("descriptors".into()))
        .unwrap();
    let wrapped = WrappedResource::decode(came.resources[0].clone()).unwrap();
    let schema = heddle_proto::xds::v1::Schema::decode(wrapped.resource.unwrap().value.as_slice());
    assert_eq!(schema.unwrap().file_descriptor_set, "descriptors");
    client.nonces.insert(Kind::Schema, came.nonce);
    client.ack(Kind::Schema);
    assert!(!client.state.has_missing_schemas() && client.state.wanted_schema().is_none());
}

#[test]
fn a_removal_is_acknowledged_only_when_the_client_says_so() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    let at = |client: &DeltaClient, name: &str, revision: u64| {
        client
            .state
            .subscription(Kind::Endpoint)
            .acknowledged_at(name, revision)
    };
    assert_eq!(
        at(&client, "users.default", 0),
        None,
        "never requested: does not count"
    );
    client.subscribe(Kind::Endpoint, &["users.default"], &[]);
    assert_eq!(at(&client, "orders.default", 0), None);
    assert_eq!(at(&client, "users.default", snapshot.revision), Some(false));
    client.settle();
    assert_eq!(at(&client, "users.default", snapshot.revision), Some(true));
    mesh.remove("a/users/1");
    let snapshot = mesh.snapshot();
    assert_eq!(
        at(&client, "users.default", snapshot.revision),
        Some(false),
        "not seen yet"
    );
    client.see(&snapshot).pump();
    assert_eq!(
        at(&client, "users.default", snapshot.revision),
        Some(false),
        "under way"
    );
    client.ack(Kind::Endpoint).pump();
    assert_eq!(at(&client, "users.default", snapshot.revision), Some(true));
    mesh.put("a/orders/2", "10.0.0.3:80");
    let snapshot = mesh.snapshot();
    client.see(&snapshot).pump();
    assert_eq!(
        at(&client, "users.default", snapshot.revision),
        Some(true),
        "nothing of its concern"
    );
}
