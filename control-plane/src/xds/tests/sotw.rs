use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::{super::*, clients::*};
use crate::snapshot::{Audience, Kind};

#[test]
fn grpc_follows_its_target_to_the_endpoints() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    let mut log = Vec::new();
    client.subscribe(Kind::Listener, &["users"]);
    log.extend(client.settle());
    client.subscribe(Kind::Route, &["users.default"]);
    log.extend(client.settle());
    client.subscribe(Kind::Cluster, &["users.default"]);
    log.extend(client.settle());
    client.subscribe(Kind::Endpoint, &["users.default"]);
    log.extend(client.settle());
    assert_eq!(
        log,
        [
            "listener users",
            "route users.default",
            "cluster users.default",
            "endpoint users.default"
        ]
    );
    mesh.put("a/orders/2", "10.0.0.8:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), [""; 0], "of no concern");
    mesh.put("a/users/2", "10.0.0.9:80");
    let snapshot = mesh.snapshot();
    client.see(&snapshot);
    let responses = client.pump();
    let [(Kind::Endpoint, _, response)] = &responses[..] else {
        panic!("{responses:?}")
    };
    let (revision, hash) = response.version_info.split_once('/').unwrap();
    assert_eq!(revision, snapshot.revision.to_string());
    assert_eq!(hash.len(), 16);
}

#[test]
fn sotw_whole_state_carries_everything_and_says_what_is_missing() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Cluster, &["users.default", "later.default"]);
    assert_eq!(client.settle(), ["cluster users.default"]);
    mesh.put("a/later/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), ["cluster later.default users.default"]);
    client.subscribe(Kind::Listener, &["nowhere"]);
    assert_eq!(
        client.settle(),
        ["listener"],
        "an answer without it: gRPC fails at once, not after 15 s"
    );
    client.see(&mesh.forget("users.default"));
    assert_eq!(client.settle(), ["cluster later.default"]);
}

#[test]
fn sotw_added_name_is_answered_and_known_ones_are_not_sent_again() {
    let (_, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default"]);
    client.settle();
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"]);
    assert_eq!(client.settle(), ["endpoint orders.default"]);
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"]);
    assert_eq!(
        client.settle(),
        ["endpoint orders.default users.default"],
        "asked for once more"
    );
    client.subscribe(Kind::Endpoint, &["orders.default"]);
    assert_eq!(client.settle(), [""; 0]);
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"]);
    assert_eq!(
        client.settle(),
        ["endpoint users.default"],
        "dropped and wanted again"
    );
}

#[test]
fn sotw_empty_list_means_all_only_before_anything_was_named() {
    let (_, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, Arc::clone(&snapshot));
    client.subscribe(Kind::Cluster, &[]);
    assert_eq!(client.settle(), ["cluster orders.default users.default"]);
    let mut named = SotwClient::new(Audience::DirectLocal, snapshot);
    named.subscribe(Kind::Cluster, &["users.default"]);
    named.settle();
    named.subscribe(Kind::Cluster, &[]);
    assert_eq!(named.settle(), [""; 0]);
    named.subscribe(Kind::Cluster, &["*"]);
    assert_eq!(named.settle(), ["cluster orders.default users.default"]);
}

#[test]
fn sotw_request_about_an_overtaken_response_is_ignored() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default"]);
    client.settle();
    let old = client.nonces.clone();
    mesh.put("a/users/2", "10.0.0.9:80");
    client.see(&mesh.snapshot()).pump();
    let new = std::mem::replace(&mut client.nonces, old);
    assert_eq!(
        client.subscribe(Kind::Endpoint, &["orders.default"]),
        RequestOutcome::Stale
    );
    client.nonces = new;
    assert_eq!(
        client.answer(Kind::Endpoint, None),
        RequestOutcome::Acknowledged
    );
    assert_eq!(client.settle(), ["endpoint orders.default"]);
}

#[test]
fn sotw_rejection_is_kept_and_the_next_version_tried() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Cluster, &[]);
    client.pump();
    assert_eq!(
        client.answer(Kind::Cluster, Some("lb_policy")),
        RequestOutcome::Rejected
    );
    assert!(client.pump().is_empty(), "not sent again unchanged");
    let status = client.state.subscription(Kind::Cluster).status().unwrap();
    assert_eq!(status.rejected.unwrap().reason, "lb_policy");
    mesh.put("a/new/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(
        client.settle(),
        ["cluster new.default orders.default users.default"]
    );
    assert!(
        client
            .state
            .subscription(Kind::Cluster)
            .status()
            .unwrap()
            .rejected
            .is_none()
    );
}

#[test]
fn sotw_keeps_a_removed_cluster_until_the_routes_are_sent() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Cluster, &[]);
    client.subscribe(Kind::Listener, &["users"]);
    client.settle();
    mesh.put("a/new/1", "10.0.0.3:80");
    mesh.snapshot();
    client.see(&mesh.forget("users.default"));
    let sent: Vec<_> = client
        .pump()
        .into_iter()
        .map(|(kind, names, _)| (kind, names))
        .collect();
    assert_eq!(
        sent,
        [
            (
                Kind::Cluster,
                strings(&["new.default", "orders.default", "users.default"])
            ),
            (Kind::Listener, vec![]),
        ]
    );
    client.answer(Kind::Cluster, None);
    assert!(client.pump().is_empty());
    client.answer(Kind::Listener, None);
    assert_eq!(client.settle(), ["cluster new.default orders.default"]);
}

#[test]
fn the_revision_that_a_client_names_is_read() {
    let named = |version: &str| {
        Sotw::revision(&DiscoveryRequest {
            version_info: version.to_owned(),
            ..DiscoveryRequest::default()
        })
    };
    for (version, expect) in [
        ("17/0123", 17),
        ("", 0),
        ("17", 0),
        ("v1/x", 0),
        ("99999999999999999999/x", 0),
    ] {
        assert_eq!(named(version), expect, "{version}");
    }
}

#[test]
fn sotw_follows_the_examples_of_the_protocol() {
    // xDS protocol, "How the client specifies what resources to return", the example for state of the world.
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Cluster, &[]);
    assert_eq!(client.settle(), ["cluster orders.default users.default"]);
    client.subscribe(Kind::Cluster, &["*", "users.default"]);
    assert_eq!(client.settle(), ["cluster orders.default users.default"]);
    client.subscribe(Kind::Cluster, &["users.default"]);
    mesh.put("a/later/1", "10.0.0.7:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), [""; 0], "only what is named");
    client.subscribe(Kind::Cluster, &[]);
    assert_eq!(client.settle(), [""; 0], "nothing, and not everything");
    let status = client.state.subscription(Kind::Cluster).status().unwrap();
    assert_eq!(
        (status.resources, status.subscribed, status.wildcard),
        (0, 0, false)
    );
}

#[test]
fn sotw_endpoints_of_an_unknown_service_are_answered_at_once() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default"]);
    client.settle();
    client.subscribe(Kind::Endpoint, &["later.default", "users.default"]);
    assert_eq!(
        client.settle(),
        ["endpoint later.default"],
        "empty: its cluster would wait for it in warming"
    );
    mesh.put("a/later/1", "10.0.0.7:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), ["endpoint later.default"]);
}
