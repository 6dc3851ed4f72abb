use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DiscoveryRequest, Resource as WrappedResource,
    },
    google::{protobuf::Any, rpc::Status},
};
use proptest::prelude::*;
use prost::Message as _;

use super::{
    wire::{DeltaDiscoveryResponse, DiscoveryResponse},
    *,
};
use crate::snapshot::{Audience, Encodes, Kind, Snapshot, fixture::Mesh, outbound_listener};

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn rejection(text: &str) -> Option<Status> {
    Some(Status {
        code: 3,
        message: text.to_owned(),
        details: Vec::new(),
    })
}

/// A delta client that keeps what it is sent.
struct DeltaClient {
    session: Session,
    snapshot: Arc<Snapshot>,
    held: BTreeMap<(Kind, String), String>,
    nonces: BTreeMap<Kind, String>,
    log: Vec<String>,
}

impl DeltaClient {
    fn new(audience: Audience, snapshot: Arc<Snapshot>) -> Self {
        Self {
            session: Session::new(Lens::new(audience), &snapshot),
            snapshot,
            held: BTreeMap::new(),
            nonces: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn ask(&mut self, kind: Kind, add: &[&str], take: &[&str]) -> &mut Self {
        self.request(
            kind,
            &DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                resource_names_subscribe: strings(add),
                resource_names_unsubscribe: strings(take),
                ..DeltaDiscoveryRequest::default()
            },
        );
        self
    }

    fn request(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) -> Heard {
        self.session.on_request::<Delta>(kind, request).unwrap()
    }

    fn see(&mut self, snapshot: &Arc<Snapshot>) -> &mut Self {
        self.snapshot = Arc::clone(snapshot);
        self.session.observe(snapshot);
        self
    }

    /// Takes all responses that may go out, without answering them.
    fn pump(&mut self) -> Vec<(Kind, DeltaDiscoveryResponse)> {
        let mut responses = Vec::new();
        while let Some((kind, response)) = self.session.next::<Delta>(&self.snapshot) {
            assert!(
                self.nonces.insert(kind, response.nonce.clone()).is_none(),
                "one response per type at a time"
            );
            let mut parts = Vec::new();
            for resource in &response.resources {
                let resource = WrappedResource::decode(resource.clone()).unwrap();
                self.held
                    .insert((kind, resource.name.clone()), resource.version);
                parts.push(format!("+{}", resource.name));
            }
            for name in &response.removed_resources {
                self.held.remove(&(kind, name.clone()));
                parts.push(format!("-{name}"));
            }
            self.log.push(
                format!("{} {}", kind.word(), parts.join(" "))
                    .trim()
                    .to_owned(),
            );
            responses.push((kind, response));
        }
        responses
    }

    fn answer(&mut self, kind: Kind, reason: Option<&str>) -> Heard {
        let nonce = self.nonces.remove(&kind).expect("a response is under way");
        self.request(
            kind,
            &DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                response_nonce: nonce,
                error_detail: reason.and_then(rejection),
                ..DeltaDiscoveryRequest::default()
            },
        )
    }

    fn ack(&mut self, kind: Kind) -> &mut Self {
        assert_eq!(self.answer(kind, None), Heard::Acknowledged);
        self
    }

    /// What was sent until nothing more comes, everything acknowledged.
    fn settle(&mut self) -> Vec<String> {
        self.log.clear();
        loop {
            self.pump();
            let Some(kind) = self.nonces.keys().next().copied() else {
                return std::mem::take(&mut self.log);
            };
            self.ack(kind);
        }
    }

    fn names(&self, kind: Kind) -> Vec<&str> {
        self.held
            .keys()
            .filter(|(held, _)| *held == kind)
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

/// A state-of-the-world client that keeps what it is sent.
struct SotwClient {
    session: Session,
    snapshot: Arc<Snapshot>,
    wanted: BTreeMap<Kind, Vec<String>>,
    held: BTreeMap<Kind, BTreeMap<String, Vec<u8>>>,
    versions: BTreeMap<Kind, String>,
    nonces: BTreeMap<Kind, String>,
    unanswered: BTreeMap<Kind, String>,
}

impl SotwClient {
    fn new(audience: Audience, snapshot: Arc<Snapshot>) -> Self {
        Self {
            session: Session::new(Lens::new(audience), &snapshot),
            snapshot,
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            versions: BTreeMap::new(),
            nonces: BTreeMap::new(),
            unanswered: BTreeMap::new(),
        }
    }

    fn ask(&mut self, kind: Kind, names: &[&str]) -> Heard {
        self.wanted.insert(kind, strings(names));
        self.request(kind, None)
    }

    fn request(&mut self, kind: Kind, error: Option<&str>) -> Heard {
        let request = DiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names: self.wanted.get(&kind).cloned().unwrap_or_default(),
            version_info: self.versions.get(&kind).cloned().unwrap_or_default(),
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            error_detail: error.and_then(rejection),
            ..DiscoveryRequest::default()
        };
        self.session.on_request::<Sotw>(kind, &request).unwrap()
    }

    fn see(&mut self, snapshot: &Arc<Snapshot>) -> &mut Self {
        self.snapshot = Arc::clone(snapshot);
        self.session.observe(snapshot);
        self
    }

    fn pump(&mut self) -> Vec<(Kind, Vec<String>, DiscoveryResponse)> {
        let mut responses = Vec::new();
        while let Some((kind, response)) = self.session.next::<Sotw>(&self.snapshot) {
            assert!(
                self.unanswered
                    .insert(kind, response.version_info.clone())
                    .is_none()
            );
            self.nonces.insert(kind, response.nonce.clone());
            let mut names = Vec::new();
            let held = self.held.entry(kind).or_default();
            if kind.whole_state() {
                held.clear();
            }
            for resource in &response.resources {
                let any = Any::decode(resource.clone()).unwrap();
                let name = name_of(kind, &any.value);
                held.insert(name.clone(), any.value);
                names.push(name);
            }
            responses.push((kind, names, response));
        }
        responses
    }

    fn answer(&mut self, kind: Kind, reason: Option<&str>) -> Heard {
        let version = self
            .unanswered
            .remove(&kind)
            .expect("a response is under way");
        if reason.is_none() {
            self.versions.insert(kind, version);
        }
        self.request(kind, reason)
    }

    fn settle(&mut self) -> Vec<String> {
        let mut log = Vec::new();
        loop {
            for (kind, names, _) in self.pump() {
                log.push(
                    format!("{} {}", kind.word(), names.join(" "))
                        .trim()
                        .to_owned(),
                );
            }
            let Some(kind) = self.unanswered.keys().next().copied() else {
                return log;
            };
            assert_eq!(self.answer(kind, None), Heard::Acknowledged);
        }
    }
}

/// The name stands in field 1 of every type that is served.
fn name_of(_: Kind, value: &[u8]) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(value).unwrap().name
}

fn two_services() -> (Mesh, Arc<Snapshot>) {
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.put("a/orders/1", "10.0.0.2:80");
    let snapshot = mesh.snapshot();
    (mesh, snapshot)
}

// ---- delta ----

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

#[test]
fn one_response_is_under_way_and_changes_meanwhile_go_together() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    client.ask(Kind::Endpoint, &["users.default", "orders.default"], &[]);
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
        .ask(Kind::Cluster, &[], &[])
        .ask(Kind::ServiceIndex, &[], &[]);
    client.ask(Kind::Endpoint, &["users.default", "orders.default"], &[]);
    client
        .ask(Kind::Listener, &["users"], &[])
        .ask(Kind::Route, &["users.default"], &[]);
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
        .ask(Kind::Cluster, &[], &[])
        .ask(Kind::Route, &["orders.default"], &[]);
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
    client.ask(Kind::Cluster, &[], &[]);
    client.settle();
    client.ask(Kind::Route, &["new.default"], &[]);
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
    let (_, snapshot) = two_services();
    let encodes = Encodes::default();
    let mut client = DeltaClient::new(Audience::DirectLocal, Arc::clone(&snapshot));
    client.ask(Kind::Listener, &[], &[]);
    assert_eq!(
        client.settle(),
        ["listener"],
        "answered, with nothing in it"
    );

    let mut lens = Lens::new(Audience::DirectLocal);
    lens.outbound = Some(outbound_listener(
        "127.0.0.1:9001".parse().unwrap(),
        &encodes,
    ));
    let mut envoy = DeltaClient::new(Audience::DirectLocal, Arc::clone(&snapshot));
    envoy.session = Session::new(lens, &snapshot);
    envoy
        .ask(Kind::Listener, &[], &[])
        .ask(Kind::Route, &["heddle/outbound"], &[]);
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
    client.ask(Kind::Endpoint, &["*"], &[]);
    let responses = client.pump();
    let [(_, first)] = &responses[..] else {
        panic!()
    };
    assert!(first.encoded_len() < MAX_RESPONSE_BYTES + 1024 && first.resources.len() > 10);
    client.ack(Kind::Endpoint);
    assert!(!client.settle().is_empty());
    assert_eq!(client.names(Kind::Endpoint).len(), 60);
}

#[test]
fn hostile_names_are_refused() {
    let (_, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, snapshot);
    let many = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=MAX_NAMES).map(|name| name.to_string()).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let refused = client.session.on_request::<Delta>(Kind::Endpoint, &many);
    assert_eq!(refused, Err(Violation::TooManyNames(Kind::Endpoint)));
    let long = DiscoveryRequest {
        resource_names: vec!["x".repeat(MAX_NAME_BYTES + 1)],
        ..DiscoveryRequest::default()
    };
    let refused = client.session.on_request::<Sotw>(Kind::Route, &long);
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
    client.ask(Kind::Schema, &[&name], &[]);
    assert!(client.pump().is_empty(), "not known yet whether it exists");
    assert_eq!(client.session.wanted_schema(), Some(Arc::clone(&name)));
    let gone = client
        .session
        .schema_fetched::<Delta>(&snapshot, &name, None)
        .unwrap();
    assert_eq!(gone.removed_resources, [&*name]);
    client.nonces.insert(Kind::Schema, gone.nonce);
    client.ack(Kind::Schema);
    assert!(client.session.wanted_schema().is_none() && client.session.misses_schemas());
    client.session.retry_schemas();
    assert_eq!(client.session.wanted_schema(), Some(Arc::clone(&name)));
    let came = client
        .session
        .schema_fetched::<Delta>(&snapshot, &name, Some("descriptors".into()))
        .unwrap();
    let wrapped = WrappedResource::decode(came.resources[0].clone()).unwrap();
    let schema = heddle_proto::xds::v1::Schema::decode(wrapped.resource.unwrap().value.as_slice());
    assert_eq!(schema.unwrap().file_descriptor_set, "descriptors");
    client.nonces.insert(Kind::Schema, came.nonce);
    client.ack(Kind::Schema);
    assert!(!client.session.misses_schemas() && client.session.wanted_schema().is_none());
}

// ---- state of the world ----

#[test]
fn grpc_follows_its_target_to_the_endpoints() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    let mut log = Vec::new();
    client.ask(Kind::Listener, &["users"]);
    log.extend(client.settle());
    client.ask(Kind::Route, &["users.default"]);
    log.extend(client.settle());
    client.ask(Kind::Cluster, &["users.default"]);
    log.extend(client.settle());
    client.ask(Kind::Endpoint, &["users.default"]);
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
    client.ask(Kind::Cluster, &["users.default", "later.default"]);
    assert_eq!(client.settle(), ["cluster users.default"]);
    mesh.put("a/later/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(client.settle(), ["cluster later.default users.default"]);
    client.ask(Kind::Listener, &["nowhere"]);
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
    client.ask(Kind::Endpoint, &["users.default"]);
    client.settle();
    client.ask(Kind::Endpoint, &["users.default", "orders.default"]);
    assert_eq!(client.settle(), ["endpoint orders.default"]);
    client.ask(Kind::Endpoint, &["users.default", "orders.default"]);
    assert_eq!(
        client.settle(),
        ["endpoint orders.default users.default"],
        "asked for once more"
    );
    client.ask(Kind::Endpoint, &["orders.default"]);
    assert_eq!(client.settle(), [""; 0]);
    client.ask(Kind::Endpoint, &["users.default", "orders.default"]);
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
    client.ask(Kind::Cluster, &[]);
    assert_eq!(client.settle(), ["cluster orders.default users.default"]);
    let mut named = SotwClient::new(Audience::DirectLocal, snapshot);
    named.ask(Kind::Cluster, &["users.default"]);
    named.settle();
    named.ask(Kind::Cluster, &[]);
    assert_eq!(named.settle(), [""; 0]);
    named.ask(Kind::Cluster, &["*"]);
    assert_eq!(named.settle(), ["cluster orders.default users.default"]);
}

#[test]
fn sotw_request_about_an_overtaken_response_is_ignored() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.ask(Kind::Endpoint, &["users.default"]);
    client.settle();
    let old = client.nonces.clone();
    mesh.put("a/users/2", "10.0.0.9:80");
    client.see(&mesh.snapshot()).pump();
    let new = std::mem::replace(&mut client.nonces, old);
    assert_eq!(
        client.ask(Kind::Endpoint, &["orders.default"]),
        Heard::Stale
    );
    client.nonces = new;
    assert_eq!(client.answer(Kind::Endpoint, None), Heard::Acknowledged);
    assert_eq!(client.settle(), ["endpoint orders.default"]);
}

#[test]
fn sotw_rejection_is_kept_and_the_next_version_tried() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.ask(Kind::Cluster, &[]);
    client.pump();
    assert_eq!(
        client.answer(Kind::Cluster, Some("lb_policy")),
        Heard::Rejected
    );
    assert!(client.pump().is_empty(), "not sent again unchanged");
    let status = client.session.subscription(Kind::Cluster).status().unwrap();
    assert_eq!(status.rejected.unwrap().reason, "lb_policy");
    mesh.put("a/new/1", "10.0.0.3:80");
    client.see(&mesh.snapshot());
    assert_eq!(
        client.settle(),
        ["cluster new.default orders.default users.default"]
    );
    assert!(
        client
            .session
            .subscription(Kind::Cluster)
            .status()
            .unwrap()
            .rejected
            .is_none()
    );
}

#[test]
fn sotw_keeps_a_removed_cluster_until_the_routes_are_told() {
    let (mut mesh, snapshot) = two_services();
    let mut client = SotwClient::new(Audience::DirectLocal, snapshot);
    client.ask(Kind::Cluster, &[]);
    client.ask(Kind::Listener, &["users"]);
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
fn a_removal_is_acknowledged_only_when_the_client_says_so() {
    let (mut mesh, snapshot) = two_services();
    let mut client = DeltaClient::new(Audience::Proxy, Arc::clone(&snapshot));
    let at = |client: &DeltaClient, name: &str, revision: u64| {
        client
            .session
            .subscription(Kind::Endpoint)
            .acknowledged_at(name, revision)
    };
    assert_eq!(
        at(&client, "users.default", 0),
        None,
        "never asked: does not count"
    );
    client.ask(Kind::Endpoint, &["users.default"], &[]);
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

// ---- properties ----

#[derive(Clone, Debug)]
enum Step {
    Put { service: u8, instance: u8, port: u8 },
    Remove { service: u8, instance: u8 },
    Forget { service: u8 },
    Publish,
    Want { service: u8 },
    Unwant { service: u8 },
    Deliver,
    Answer { kind: u8, reject: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4_u8, 0..3_u8, 0..4_u8)
            .prop_map(|(service, instance, port)| Step::Put { service, instance, port }),
        2 => (0..4_u8, 0..3_u8).prop_map(|(service, instance)| Step::Remove { service, instance }),
        1 => (0..4_u8).prop_map(|service| Step::Forget { service }),
        3 => Just(Step::Publish),
        1 => (0..4_u8).prop_map(|service| Step::Want { service }),
        1 => (0..4_u8).prop_map(|service| Step::Unwant { service }),
        3 => Just(Step::Deliver),
        4 => (0..5_u8, prop::bool::weighted(0.1))
            .prop_map(|(kind, reject)| Step::Answer { kind, reject }),
    ];
    prop::collection::vec(step, 1..80)
}

fn service(number: u8) -> String {
    format!("s{number}.default")
}

/// Applies a step that changes the mesh; gives the snapshot if one is published.
fn change(mesh: &mut Mesh, step: &Step) -> Option<Arc<Snapshot>> {
    match step {
        Step::Put {
            service,
            instance,
            port,
        } => {
            mesh.put(
                &format!("a/s{service}/{instance}"),
                &format!("10.0.{service}.{instance}:{port}"),
            );
            None
        }
        Step::Remove { service, instance } => {
            mesh.remove(&format!("a/s{service}/{instance}"));
            None
        }
        Step::Forget { service: number } => {
            for instance in 0..3 {
                mesh.remove(&format!("a/s{number}/{instance}"));
            }
            mesh.snapshot();
            Some(mesh.forget(&service(*number)))
        }
        Step::Publish => Some(mesh.snapshot()),
        _ => None,
    }
}

const KINDS: [Kind; 5] = [
    Kind::Cluster,
    Kind::Endpoint,
    Kind::Listener,
    Kind::Route,
    Kind::ServiceIndex,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever changes and whenever it answers: a delta client ends with exactly what the snapshot has for it, and
    /// is never sent what it holds unless it asked for it.
    #[test]
    fn delta_converges_and_sends_nothing_twice(steps in steps()) {
        let mut mesh = Mesh::new();
        let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
        let mut wanted: BTreeSet<u8> = BTreeSet::from([0]);
        client.ask(Kind::Cluster, &[], &[]).ask(Kind::ServiceIndex, &[], &[]);
        client.ask(Kind::Endpoint, &[&service(0)], &[]).ask(Kind::Route, &[&service(0)], &[]);
        let mut asked: BTreeSet<(Kind, String)> = BTreeSet::new();
        for step in &steps {
            if let Some(snapshot) = change(&mut mesh, step) {
                client.see(&snapshot);
            }
            match step {
                Step::Want { service: number } => {
                    wanted.insert(*number);
                    for kind in [Kind::Endpoint, Kind::Route] {
                        client.ask(kind, &[&service(*number)], &[]);
                        asked.insert((kind, service(*number)));
                    }
                }
                Step::Unwant { service: number } => {
                    wanted.remove(number);
                    for kind in [Kind::Endpoint, Kind::Route] {
                        client.ask(kind, &[], &[&service(*number)]);
                        client.held.remove(&(kind, service(*number)));
                        asked.insert((kind, service(*number)));
                    }
                }
                Step::Deliver => {
                    let before = client.held.clone();
                    for (kind, response) in client.pump() {
                        for resource in response.resources {
                            let resource = WrappedResource::decode(resource).unwrap();
                            let key = (kind, resource.name);
                            let same = before.get(&key) == Some(&resource.version);
                            prop_assert!(!same || asked.contains(&key), "{:?} sent again", key);
                        }
                    }
                }
                Step::Answer { kind, reject } => {
                    let kind = KINDS[usize::from(*kind)];
                    if client.nonces.contains_key(&kind) {
                        client.answer(kind, reject.then_some("no"));
                    }
                }
                _ => {}
            }
        }
        client.see(&mesh.snapshot());
        client.settle();
        let snapshot = Arc::clone(&client.snapshot);
        let mut expect = BTreeMap::new();
        for kind in [Kind::Cluster, Kind::ServiceIndex] {
            for resource in snapshot.table(kind, Audience::Proxy).values() {
                expect.insert((kind, resource.name.to_string()), resource.version.to_string());
            }
        }
        for kind in [Kind::Endpoint, Kind::Route] {
            for number in &wanted {
                if let Some(resource) = snapshot.get(kind, Audience::Proxy, &service(*number)) {
                    expect.insert((kind, resource.name.to_string()), resource.version.to_string());
                }
            }
        }
        prop_assert_eq!(&client.held, &expect);
        for number in wanted {
            let acknowledged = client
                .session
                .subscription(Kind::Endpoint)
                .acknowledged_at(&service(number), snapshot.revision);
            prop_assert!(acknowledged.is_some());
        }
        client.log.clear();
        prop_assert_eq!(client.pump().len(), 0);
    }

    /// The same for state of the world, where what was deleted can be told only of listeners and clusters.
    #[test]
    fn sotw_converges(steps in steps()) {
        let mut mesh = Mesh::new();
        let mut client = SotwClient::new(Audience::DirectLocal, mesh.snapshot());
        let mut wanted: BTreeSet<u8> = BTreeSet::from([0]);
        client.ask(Kind::Cluster, &[]);
        client.ask(Kind::Endpoint, &[&service(0)]);
        client.ask(Kind::Listener, &[&service(0)]);
        for step in &steps {
            if let Some(snapshot) = change(&mut mesh, step) {
                client.see(&snapshot);
            }
            match step {
                Step::Want { service: number } | Step::Unwant { service: number } => {
                    if matches!(step, Step::Want { .. }) {
                        wanted.insert(*number);
                    } else {
                        wanted.remove(number);
                    }
                    let names: Vec<String> = wanted.iter().map(|number| service(*number)).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    for kind in [Kind::Endpoint, Kind::Listener] {
                        // As gRPC does: with the nonce of the last response it has seen.
                        client.ask(kind, &names);
                        client.unanswered.remove(&kind);
                        client.held.entry(kind).or_default().retain(|name, _| names.contains(&name.as_str()));
                    }
                }
                Step::Deliver => {
                    client.pump();
                }
                Step::Answer { kind, reject } => {
                    let kind = KINDS[usize::from(*kind)];
                    if client.unanswered.contains_key(&kind) {
                        client.answer(kind, reject.then_some("no"));
                    }
                }
                _ => {}
            }
        }
        client.see(&mesh.snapshot());
        client.settle();
        let snapshot = Arc::clone(&client.snapshot);
        let value = |kind, name: &str| {
            let resource = snapshot.get(kind, Audience::DirectLocal, name)?;
            Some(Any::decode(resource.any()).unwrap().value)
        };
        let clusters: BTreeMap<_, _> = snapshot
            .table(Kind::Cluster, Audience::DirectLocal)
            .keys()
            .map(|name| (name.to_string(), value(Kind::Cluster, name).unwrap()))
            .collect();
        prop_assert_eq!(&client.held[&Kind::Cluster], &clusters);
        for number in wanted {
            let name = service(number);
            if let Some(expect) = value(Kind::Endpoint, &name) {
                prop_assert_eq!(client.held[&Kind::Endpoint].get(&name), Some(&expect));
            }
            let listener = client.held.get(&Kind::Listener).and_then(|held| held.get(&name));
            let expect = value(Kind::Listener, &name);
            prop_assert_eq!(listener, expect.as_ref());
        }
    }
}
