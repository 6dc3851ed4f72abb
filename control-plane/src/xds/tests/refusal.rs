use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::envoy::service::discovery::v3::Resource as WrappedResource;
use prost::Message as _;

use super::{super::ClientState, clients::*};
use crate::snapshot::{Audience, Kind, fixture::Mesh};

fn mesh_of(services: usize) -> Mesh {
    let mut mesh = Mesh::new();
    for service in 0..services {
        mesh.put(&format!("a/s{service:03}/1"), "10.0.0.1:80");
    }
    mesh
}

/// Answers each response as a client that takes all or nothing of it; returns the number of responses.
fn settle_without(client: &mut DeltaClient, kind: Kind, bad: &str, name_it: bool) -> usize {
    let mut count = 0;
    while let Some((_, response)) = client.pump().pop() {
        count += 1;
        assert!(count < 1_000, "no end");
        let found = response.resources.iter().any(|each| {
            let each = WrappedResource::decode(each.clone()).unwrap();
            each.name == bad
        });
        let reason = found.then(|| {
            if name_it {
                format!("in {bad}: no such locality")
            } else {
                "no such locality".to_owned()
            }
        });
        client.answer(kind, reason.as_deref());
    }
    count
}

fn refused(state: &ClientState, kind: Kind) -> Vec<String> {
    let status = state.subscription(kind).status().unwrap();
    status
        .refused(100)
        .into_iter()
        .map(|each| each.name)
        .collect()
}

fn acknowledged(client: &DeltaClient, name: &str) -> bool {
    let endpoints = client.state.subscription(Kind::Endpoint);
    endpoints.acknowledged_at(name, client.snapshot.revision) == Some(true)
}

#[test]
fn the_bad_resource_is_found_and_the_others_get_through() {
    let mut mesh = mesh_of(100);
    for (name_it, most) in [(true, 3), (false, 2 * 7 + 1)] {
        let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
        client.subscribe(Kind::Endpoint, &["*"], &[]);
        let count = settle_without(&mut client, Kind::Endpoint, "s042.default", name_it);
        assert!(count <= most, "{count} responses");
        assert_eq!(refused(&client.state, Kind::Endpoint), ["s042.default"]);
        for service in 0..100 {
            let name = format!("s{service:03}.default");
            assert_eq!(acknowledged(&client, &name), service != 42, "{name}");
        }
        let status = client.state.subscription(Kind::Endpoint).status().unwrap();
        assert!(status.rejected.unwrap().reason.contains("no such locality"));
    }
}

#[test]
fn what_was_refused_is_sent_again_only_when_it_changes() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"], &[]);
    settle_without(&mut client, Kind::Endpoint, "users.default", true);
    assert_eq!(refused(&client.state, Kind::Endpoint), ["users.default"]);
    mesh.put("a/orders/1", "10.0.0.7:80");
    client.see(&mesh.snapshot());
    assert_eq!(
        client.settle(),
        ["endpoint +orders.default"],
        "the rest goes on"
    );
    let status = client.state.subscription(Kind::Endpoint).status().unwrap();
    assert!(status.rejected.is_some(), "still refused, still shown");

    mesh.put("a/users/1", "10.0.0.8:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), ["endpoint +users.default"]);
    assert!(acknowledged(&client, "users.default"));
    let status = client.state.subscription(Kind::Endpoint).status().unwrap();
    assert!(status.rejected.is_none());
    assert_eq!(refused(&client.state, Kind::Endpoint), [""; 0]);
}

#[test]
fn what_a_client_asks_for_again_it_gets_though_it_refused_it() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default"], &[]);
    settle_without(&mut client, Kind::Endpoint, "users.default", true);
    client.subscribe(Kind::Endpoint, &["users.default"], &[]);
    assert_eq!(client.settle(), ["endpoint +users.default"]);
}

#[test]
fn a_client_that_takes_nothing_costs_a_bounded_number_of_responses() {
    let mesh = &mut mesh_of(200);
    let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
    client.subscribe(Kind::Endpoint, &["*"], &[]);
    let mut count = 0;
    while !client.pump().is_empty() {
        client.answer(Kind::Endpoint, Some("no"));
        count += 1;
    }
    assert_eq!(count, 1 + 2 * 64);
    assert_eq!(
        refused(&client.state, Kind::Endpoint).len(),
        100,
        "of which the first are shown"
    );
    assert!(!client.state.subscription(Kind::Endpoint).in_flight());
}

#[test]
fn a_refused_change_leaves_the_last_good_state_and_its_targets() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client
        .subscribe(Kind::Cluster, &[], &[])
        .subscribe(Kind::Route, &["heddle/outbound"], &[]);
    client.settle();
    // The client rejects the routes without users: it still sends calls there.
    client.see(&mesh.forget("users.default"));
    client.pump();
    client.answer(Kind::Route, Some("too few routes"));
    assert!(client.pump().is_empty(), "the cluster stays");
    assert!(client.names(Kind::Cluster).contains(&"users.default"));
    mesh.put("a/more/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(
        client.settle(),
        [
            "cluster +more.default",
            "route +heddle/outbound",
            "cluster -users.default"
        ],
        "these it took"
    );
}

#[test]
fn a_refused_cluster_does_not_hold_up_the_routes_of_others() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Cluster, &[], &[]);
    client.settle();
    client.subscribe(Kind::Route, &["new.default", "good.default"], &[]);
    client.settle();
    mesh.put("a/new/1", "10.0.0.4:80");
    mesh.put("a/good/1", "10.0.0.4:80");
    client.see(&mesh.snapshot());
    client.pump();
    client.answer(Kind::Cluster, Some("new.default: no"));
    client.ack(Kind::Route);
    mesh.put("a/later/1", "10.0.0.5:80");
    client.see(&mesh.snapshot());
    client.subscribe(Kind::Route, &["later.default"], &[]);
    client.log.clear();
    client.pump();
    assert_eq!(
        client.log,
        ["cluster +good.default"],
        "parts first, routes wait"
    );
    client.ack(Kind::Cluster).pump();
    client.answer(Kind::Cluster, Some("new.default: no"));
    client.pump();
    client.ack(Kind::Cluster).pump();
    assert_eq!(
        client.log[1..],
        [
            "cluster +new.default",
            "cluster +later.default",
            "route +later.default"
        ]
    );
    assert_eq!(refused(&client.state, Kind::Cluster), ["new.default"]);
}

#[test]
fn parts_of_a_rejected_response_follow_the_newest_state() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.subscribe(Kind::Endpoint, &["users.default", "orders.default"], &[]);
    client.pump();
    mesh.put("a/users/1", "10.0.0.8:80");
    client.see(&mesh.snapshot());
    client.answer(Kind::Endpoint, Some("no"));
    client.subscribe(Kind::Endpoint, &[], &["orders.default"]);
    assert_eq!(
        client.settle(),
        ["endpoint +users.default"],
        "once, and as it is now"
    );
}

#[test]
fn sotw_parts_what_may_be_parted() {
    let (_, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Endpoint, &["orders.default", "users.default"]);
    client.pump();
    client.answer(Kind::Endpoint, Some("no"));
    let mut log = BTreeSet::new();
    while let Some((_, names, _)) = client.pump().pop() {
        assert_eq!(names.len(), 1);
        let bad = names[0].starts_with("users");
        client.answer(Kind::Endpoint, bad.then_some("no"));
        log.extend(names);
    }
    assert_eq!(log.len(), 2);
    assert_eq!(refused(&client.state, Kind::Endpoint), ["users.default"]);
}

#[test]
fn sotw_whole_states_name_the_refused_one_and_go_on() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.subscribe(Kind::Cluster, &[]);
    client.pump();
    client.answer(
        Kind::Cluster,
        Some("xDS response errors: [index 0: users.default: bad]"),
    );
    assert_eq!(refused(&client.state, Kind::Cluster), ["users.default"]);
    assert!(client.pump().is_empty());
    mesh.put("a/new/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    let responses = client.pump();
    assert_eq!(
        responses[0].1,
        ["new.default", "orders.default", "users.default"]
    );
    client.answer(Kind::Cluster, Some("[index 2: users.default: bad]"));
    assert_eq!(
        refused(&client.state, Kind::Cluster),
        ["users.default"],
        "the new one is not blamed"
    );
    mesh.put("a/newer/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    client.settle();
    assert_eq!(
        refused(&client.state, Kind::Cluster),
        [""; 0],
        "an acknowledgement is one of everything"
    );
}
