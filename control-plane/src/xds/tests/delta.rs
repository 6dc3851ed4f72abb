use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::{super::*, clients::*};
use crate::snapshot::{Audience, Kind};

#[test]
fn delta_wildcard_gets_everything_once_and_then_what_changed() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client
        .ask(Kind::Cluster, &[], &[])
        .ask(Kind::Endpoint, &["*"], &[]);
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
    client.ask(Kind::Endpoint, &["users.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +users.default"]);
    client.ask(Kind::Endpoint, &["orders.default", "later.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +orders.default -later.default"]);
    client.ask(Kind::Endpoint, &[], &["orders.default"]);
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
    client.ask(Kind::Endpoint, &["users.default", "none.default"], &[]);
    client.settle();
    client.ask(Kind::Endpoint, &["users.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +users.default"]);
    client.ask(Kind::Endpoint, &["none.default"], &[]);
    assert_eq!(client.settle(), ["endpoint -none.default"]);
}

#[test]
fn delta_unsubscribing_what_the_wildcard_covers_is_answered() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.ask(Kind::Cluster, &["*", "users.default", "gone.default"], &[]);
    client.settle();
    client.ask(Kind::Cluster, &[], &["users.default", "gone.default"]);
    assert_eq!(client.settle(), ["cluster +users.default -gone.default"]);
    client.ask(Kind::Cluster, &["users.default"], &["*"]);
    client.settle();
    assert!(
        client
            .session
            .subscription(Kind::Cluster)
            .acknowledged_at("orders.default", 0)
            .is_none()
    );
}

#[test]
fn delta_client_that_comes_back_gets_only_what_it_lacks() {
    let (mut mesh, snapshot) = two_services();
    let mut before = DeltaClient::new(Audience::Proxy, snapshot);
    before.ask(Kind::Cluster, &[], &[]);
    before.ask(
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
        let mine = client.held.iter().filter(|((held, _), _)| *held == kind);
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
fn delta_client_that_is_up_to_date_is_told_so() {
    let (_, snapshot) = two_services();
    let mut before = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    before.ask(Kind::Cluster, &[], &[]);
    before.settle();
    let mut after = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    let held = before
        .held
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
fn delta_rejection_is_kept_with_its_words_and_not_sent_again() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    client.ask(Kind::Endpoint, &["users.default", "orders.default"], &[]);
    client.pump();
    assert_eq!(
        client.answer(Kind::Endpoint, Some("no such locality")),
        Heard::Rejected
    );
    assert_eq!(client.settle(), [""; 0]);
    let subscription = client.session.subscription(Kind::Endpoint);
    let status = subscription.status().unwrap();
    assert_eq!(status.rejected.unwrap().reason, "no such locality");
    assert_eq!(
        status.rejected.unwrap().version,
        snapshot.revision.to_string()
    );
    assert!(status.acknowledged.is_none());
    assert_eq!(
        subscription.acknowledged_at("users.default", 0),
        Some(false)
    );

    mesh.put("a/users/1", "10.0.0.7:80");
    let snapshot = mesh.snapshot();
    client.see(&snapshot);
    assert_eq!(
        client.settle(),
        ["endpoint +users.default"],
        "the rest goes on"
    );
    let subscription = client.session.subscription(Kind::Endpoint);
    assert!(subscription.status().unwrap().rejected.is_none());
    assert_eq!(
        subscription.acknowledged_at("users.default", snapshot.revision),
        Some(true)
    );
    assert_eq!(
        subscription.acknowledged_at("orders.default", snapshot.revision),
        Some(false)
    );
}
