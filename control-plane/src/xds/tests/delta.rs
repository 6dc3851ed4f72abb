use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::{super::*, clients::*};
use crate::snapshot::{
    Audience, Kind,
    fixture::{Mesh, proto},
};

#[test]
fn delta_wildcard_gets_everything_once_and_then_what_changed() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client
        .subscribe(Kind::Cluster, &[], &[])
        .subscribe(Kind::Endpoint, &["*"], &[]);
    assert_eq!(
        client.settle(),
        [
            "cluster +orders.default +users.default",
            "endpoint +orders.default +users.default"
        ]
    );
    mesh.put("a/users/2", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), ["endpoint +users.default"]);
    mesh.put("a/users/2", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), [""; 0], "written again unchanged");
}

#[test]
fn delta_names_are_added_and_taken_away() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +users.default"]);
    client.subscribe(Kind::Endpoint, &["orders.default", "later.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +orders.default -later.default"]);
    client.subscribe(Kind::Endpoint, &[], &["orders.default"]);
    mesh.put("a/orders/1", "10.0.0.4:80");
    mesh.put("a/later/1", "10.0.0.5:80");
    client.see(&mesh.snapshot());
    assert_eq!(
        client.settle(),
        ["endpoint +later.default"],
        "orders is no longer wanted"
    );
}

#[test]
fn delta_resubscription_is_answered_though_nothing_changed() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default", "none.default"], &[]);
    client.settle();
    client.subscribe(Kind::Endpoint, &["users.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +users.default"]);
    client.subscribe(Kind::Endpoint, &["none.default"], &[]);
    assert_eq!(client.settle(), ["endpoint -none.default"]);
}

#[test]
fn delta_unsubscribing_what_the_wildcard_covers_is_answered() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Cluster, &["*", "users.default", "gone.default"], &[]);
    client.settle();
    client.subscribe(Kind::Cluster, &[], &["users.default", "gone.default"]);
    assert_eq!(client.settle(), ["cluster +users.default -gone.default"]);
    client.subscribe(Kind::Cluster, &["users.default"], &["*"]);
    client.settle();
    assert!(
        client
            .state
            .subscription(Kind::Cluster)
            .acknowledged_at("orders.default", 0)
            .is_none()
    );
}

#[test]
fn delta_client_that_comes_back_gets_only_what_it_lacks() {
    let (mut mesh, snapshot) = two_services();
    let mut before = DeltaClient::new(Audience::Proxy, snapshot);
    before.subscribe(Kind::Cluster, &[], &[]);
    before.subscribe(
        Kind::Endpoint,
        &["users.default", "orders.default", "none.default"],
        &[],
    );
    before.settle();
    mesh.put("a/orders/1", "10.0.0.4:80");
    mesh.put("a/new/1", "10.0.0.5:80");
    let snapshot = mesh.snapshot();
    let mut after = DeltaClient::new(Audience::Proxy, snapshot);
    let brought = |client: &DeltaClient, kind: Kind| {
        let mine = client
            .resources
            .iter()
            .filter(|((held, _), _)| *held == kind);
        mine.map(|((_, name), version)| (name.clone(), version.clone()))
            .collect()
    };
    let mut clusters: std::collections::HashMap<_, _> = brought(&before, Kind::Cluster);
    clusters.insert("forgotten.default".to_owned(), "0".to_owned());
    after.request(
        Kind::Cluster,
        &DeltaDiscoveryRequest {
            initial_resource_versions: clusters,
            ..DeltaDiscoveryRequest::default()
        },
    );
    after.request(
        Kind::Endpoint,
        &DeltaDiscoveryRequest {
            resource_names_subscribe: strings(&["users.default", "orders.default"]),
            initial_resource_versions: brought(&before, Kind::Endpoint),
            ..DeltaDiscoveryRequest::default()
        },
    );
    assert_eq!(
        after.settle(),
        [
            "cluster +new.default -forgotten.default",
            "endpoint +orders.default"
        ]
    );
}

#[test]
fn delta_client_that_is_up_to_date_gets_an_answer() {
    let (_, snapshot) = two_services();
    let mut before = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    before.subscribe(Kind::Cluster, &[], &[]);
    before.settle();
    let mut after = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    let held = before
        .resources
        .iter()
        .map(|((_, name), version)| (name.clone(), version.clone()));
    after.request(
        Kind::Cluster,
        &DeltaDiscoveryRequest {
            initial_resource_versions: held.collect(),
            ..DeltaDiscoveryRequest::default()
        },
    );
    let responses = after.pump();
    let [(_, response)] = &responses[..] else {
        panic!("{responses:?}")
    };
    assert_eq!(
        (response.resources.len(), response.removed_resources.len()),
        (0, 0)
    );
    assert_eq!(response.system_version_info, snapshot.revision.to_string());
}

#[test]
fn delta_follows_the_examples_of_the_protocol() {
    // xDS protocol, "How the client specifies what resources to return", the example for the incremental variant.
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Cluster, &[], &[]);
    assert_eq!(client.settle(), ["cluster +orders.default +users.default"]);
    client.subscribe(Kind::Cluster, &["users.default"], &[]);
    assert_eq!(client.settle(), ["cluster +users.default"]);
    mesh.put("a/more/1", "10.0.0.6:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), ["cluster +more.default"], "still all");
    client.subscribe(Kind::Cluster, &[], &["*"]);
    mesh.put("a/later/1", "10.0.0.7:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), [""; 0], "only what is named");
    client.subscribe(Kind::Cluster, &[], &["users.default"]);
    client.subscribe(Kind::Cluster, &[], &[]);
    mesh.put("a/last/1", "10.0.0.8:80");
    client.see(&mesh.snapshot());
    assert_eq!(
        client.settle(),
        [""; 0],
        "nothing: the wildcard of old is over"
    );
    let status = client.state.subscription(Kind::Cluster).status().unwrap();
    assert_eq!(
        (status.resources, status.subscribed, status.wildcard),
        (0, 0, false)
    );
    client.subscribe(Kind::Cluster, &["*"], &[]);
    assert_eq!(
        client.settle(),
        ["cluster +last.default +later.default +more.default +orders.default +users.default"]
    );
}

#[test]
fn names_that_were_never_requested_cost_nothing_to_remove() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Cluster, &["*"], &[]);
    client.pump();
    client.subscribe(Kind::Cluster, &[], &["x1", "x2", "x3"]);
    client.log.clear();
    client.ack(Kind::Cluster);
    assert!(client.pump().is_empty());
}

#[test]
fn answers_owed_for_names_dropped_again_are_bounded() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Cluster, &["*"], &[]);
    client.pump(); // and never acknowledges
    let mut ended = None;
    for round in 0..20 {
        let names: Vec<String> = (0..10_000).map(|each| format!("{round}-{each}")).collect();
        for (add, take) in [(names.clone(), Vec::new()), (Vec::new(), names)] {
            let request = DeltaDiscoveryRequest {
                resource_names_subscribe: add,
                resource_names_unsubscribe: take,
                ..DeltaDiscoveryRequest::default()
            };
            let outcome = client.state.on_request::<Delta>(Kind::Cluster, &request);
            if let (Err(violation), None) = (outcome, &ended) {
                ended = Some((round, violation));
            }
        }
    }
    assert_eq!(ended, Some((10, Violation::TooManyNames(Kind::Cluster))));
}

#[test]
fn the_first_answer_of_our_index_says_whether_more_follows() {
    let mut mesh = Mesh::new();
    for service in 0..2_500 {
        mesh.put(&format!("a/service{service}/1"), "10.0.0.1:80")
            .protos = (0..30)
            .map(|each| {
                proto(
                    &format!("some.long.package.of.protos.v1.Service{each}"),
                    &[],
                )
            })
            .collect();
    }
    let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
    client.subscribe(Kind::ServiceIndex, &[], &[]);
    let mut versions = Vec::new();
    loop {
        let responses = client.pump();
        let Some((_, response)) = responses.first() else {
            break;
        };
        versions.push(response.system_version_info.clone());
        client.ack(Kind::ServiceIndex);
    }
    let revision = mesh.revision.to_string();
    let last = versions.pop().unwrap();
    assert_eq!(last, revision, "complete");
    assert!(!versions.is_empty(), "several parts");
    assert!(versions.iter().all(|each| *each == format!("{revision}+")));
    mesh.put("a/service1/2", "10.0.0.2:80").protos = vec![proto("another.Service", &[])];
    let snapshot = mesh.snapshot();
    let responses = client.see(&snapshot).pump();
    assert_eq!(
        responses[0].1.system_version_info,
        snapshot.revision.to_string()
    );
}

#[test]
fn stock_clients_get_an_empty_assignment_for_what_is_not_there() {
    let (mut mesh, snapshot) = two_services();
    let mut envoy = DeltaClient::new(Audience::DirectLocal, Arc::clone(&snapshot));
    envoy.subscribe(Kind::Endpoint, &["later.default", "users.default"], &[]);
    assert_eq!(envoy.settle(), ["endpoint +later.default +users.default"]);
    let mut ours = DeltaClient::new(Audience::Proxy, snapshot);
    ours.subscribe(Kind::Endpoint, &["later.default"], &[]);
    assert_eq!(ours.settle(), ["endpoint -later.default"]);
    mesh.put("a/later/1", "10.0.0.5:80");
    let snapshot = mesh.snapshot();
    envoy.see(&snapshot);
    ours.see(&snapshot);
    assert_eq!(envoy.settle(), ["endpoint +later.default"], "it arrives");
    assert_eq!(ours.settle(), ["endpoint +later.default"]);
    let snapshot = mesh.forget("users.default");
    envoy.see(&snapshot);
    assert_eq!(
        envoy.settle(),
        ["endpoint +users.default"],
        "emptied: clients would keep the endpoints of what is only removed"
    );
}
