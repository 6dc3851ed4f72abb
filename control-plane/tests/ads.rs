//! The path of an endpoint update from end to end, in one process: a node registers, and real ADS clients get the
//! update.

// clippy.toml allows these in test functions only; helpers need them too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod csds;
mod hostile;
mod memory;
mod plane;
mod replicas;
mod reports;

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::envoy::{
    config::endpoint::v3::ClusterLoadAssignment,
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest},
};
use heddle_control::{registry::IdleOptions, snapshot::Kind};
use heddle_proto::{
    control::v1::control_message,
    status::v1::{GetMeshRequest, GetServiceRequest, ListProxiesRequest, ListServicesRequest},
    xds::v1::Schema,
};
use prost::Message as _;
use tonic::Code;

use plane::{Plane, client, echo, proxy, until, within};

const ECHO: &str = "echo.default";

fn endpoints(response: &DeltaDiscoveryResponse) -> usize {
    let any = response.resources[0].resource.as_ref().unwrap();
    let assignment = ClusterLoadAssignment::decode(any.value.as_slice()).unwrap();
    assignment
        .endpoints
        .iter()
        .map(|locality| locality.lb_endpoints.len())
        .sum()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

#[tokio::test]
async fn a_proxy_receives_what_a_node_registers_and_removes() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let mut node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut stream = plane.delta(proxy("b")).await;
    stream.subscribe(Kind::Cluster, &[]).await;
    let clusters = stream.next().await;
    assert_eq!(
        (clusters.type_url.as_str(), names(&clusters)),
        (Kind::Cluster.url(), vec![ECHO])
    );
    stream.ack(&clusters).await;
    stream.subscribe(Kind::Endpoint, &[ECHO]).await;
    let first = stream.next().await;
    assert_eq!(endpoints(&first), 1);
    stream.ack(&first).await;

    let revision = node.change(vec![echo("2", "127.0.0.1:7002")], &[]).await;
    let second = stream.next().await;
    assert_eq!(endpoints(&second), 2);
    assert_eq!(second.system_version_info, revision.to_string());
    stream.ack(&second).await;

    node.change(vec![], &["1", "2"]).await;
    let third = stream.next().await;
    assert_eq!(
        (names(&third), endpoints(&third)),
        (vec![ECHO], 0),
        "emptied, not deleted"
    );
    stream.ack(&third).await;

    // A while later the service is forgotten: the cluster is removed too.
    let mut removed = Vec::new();
    for _ in 0..2 {
        let gone = stream.next().await;
        removed.push((gone.type_url.clone(), gone.removed_resources.clone()));
        stream.ack(&gone).await;
    }
    let echo = vec![ECHO.to_owned()];
    assert_eq!(
        removed,
        [
            (Kind::Cluster.url().to_owned(), echo.clone()),
            (Kind::Endpoint.url().to_owned(), echo)
        ]
    );
}

#[tokio::test]
async fn a_service_without_instances_keeps_its_resources_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let plane = Plane::with_memory(&store, IdleOptions::default()).await;
    let mut node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    node.change(vec![], &["1"]).await;
    drop(node);
    plane.stop().await;

    let plane = Plane::with_memory(&store, IdleOptions::default()).await;
    let mut stock = plane.sotw(client("stock", &[])).await;
    for kind in [Kind::Listener, Kind::Route, Kind::Cluster, Kind::Endpoint] {
        stock.subscribe(kind, &[ECHO], "", "").await;
        let response = stock.next().await;
        assert_eq!(response.type_url, kind.url());
        assert_eq!(response.resources.len(), 1, "{}", kind.url());
        if kind == Kind::Endpoint {
            let bytes = response.resources[0].value.as_slice();
            let assignment = ClusterLoadAssignment::decode(bytes).unwrap();
            assert_eq!(assignment.cluster_name, ECHO);
            assert!(
                assignment.endpoints.is_empty(),
                "no instance, and no locality"
            );
        }
        let (version, nonce) = (response.version_info, response.nonce);
        stock.subscribe(kind, &[ECHO], &version, &nonce).await;
    }
    let mut status = plane.status().await;
    let name = "echo".to_owned();
    let service = status.get_service(GetServiceRequest { name }).await;
    let service = service.unwrap().into_inner();
    assert_eq!((service.name.as_str(), service.instances), (ECHO, 0));
}

#[tokio::test]
async fn one_change_is_encoded_once_for_all_streams() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let mut node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut streams = Vec::new();
    for number in 0..20 {
        let mut stream = plane.delta(proxy(&format!("p{number}"))).await;
        stream.subscribe(Kind::Endpoint, &[ECHO]).await;
        let response = stream.next().await;
        stream.ack(&response).await;
        streams.push(stream);
    }
    assert_eq!(plane.publisher.encodes().of(Kind::Endpoint), 1);
    node.change(vec![echo("2", "127.0.0.1:7002")], &[]).await;
    for stream in &mut streams {
        assert_eq!(endpoints(&stream.next().await), 2);
    }
    assert_eq!(plane.publisher.encodes().of(Kind::Endpoint), 2);
    assert_eq!(plane.clients.len(), 20);
}

#[tokio::test]
async fn after_a_restart_versions_are_the_same_and_nothing_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store");
    let plane = Plane::start(&file).await;
    let node = plane
        .node(
            "a",
            vec![echo("1", "127.0.0.1:7001"), echo("2", "127.0.0.1:7002")],
        )
        .await;
    let mut stream = plane.delta(proxy("b")).await;
    stream.subscribe(Kind::Endpoint, &["*"]).await;
    let before = stream.next().await;
    stream.ack(&before).await;
    let ended = tokio::spawn(async move { stream.try_next().await });
    plane.stop().await;
    drop(node);
    assert_eq!(ended.await.unwrap().unwrap_err().code(), Code::Unavailable);

    let plane = Plane::start(&file).await;
    let mut stream = plane.delta(proxy("b")).await;
    let held = before
        .resources
        .iter()
        .map(|each| (each.name.clone(), each.version.clone()));
    stream
        .send(DeltaDiscoveryRequest {
            type_url: Kind::Endpoint.url().to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: held.collect::<HashMap<_, _>>(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    let after = stream.next().await;
    assert_eq!(
        (after.resources.len(), after.removed_resources.len()),
        (0, 0)
    );
    assert_eq!(plane.publisher.encodes().of(Kind::Endpoint), 0);
}

#[tokio::test]
async fn a_removal_waits_for_every_client_that_uses_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let mut node = plane
        .node(
            "a",
            vec![echo("1", "127.0.0.1:7001"), echo("2", "127.0.0.1:7002")],
        )
        .await;
    let mut user = plane.delta(proxy("user")).await;
    user.subscribe(Kind::Endpoint, &[ECHO]).await;
    let first = user.next().await;
    user.ack(&first).await;
    let mut other = plane.delta(proxy("other")).await;
    other
        .subscribe(Kind::Endpoint, &["unrelated.default"])
        .await;
    other.next().await; // never acknowledges, and does not use the service

    node.change(vec![], &["1"]).await;
    let second = user.next().await;
    assert_eq!(endpoints(&second), 1);
    node.ask_removal("1", Duration::from_millis(50)).await;
    let control_message::Message::RemovalAnswer(answer) = node.next().await else {
        panic!()
    };
    assert!(!answer.acknowledged);
    assert_eq!(answer.unacknowledged, ["user"]);

    node.ask_removal("1", Duration::from_secs(5)).await;
    user.ack(&second).await;
    let control_message::Message::RemovalAnswer(answer) = node.next().await else {
        panic!()
    };
    assert!(answer.acknowledged && answer.unacknowledged.is_empty());
}

#[tokio::test]
async fn a_removal_does_not_wait_for_who_has_gone_or_came_back() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let instances = vec![echo("1", "127.0.0.1:7001"), echo("2", "127.0.0.1:7002")];
    let mut node = plane.node("a", instances).await;
    let mut leaves = plane.delta(client("leaves", &[])).await;
    let mut dead = plane.delta(proxy("restarted")).await;
    let mut lives = plane.delta(proxy("restarted")).await;
    for stream in [&mut leaves, &mut dead, &mut lives] {
        stream.subscribe(Kind::Endpoint, &[ECHO]).await;
        let first = stream.next().await;
        stream.ack(&first).await;
    }
    node.change(vec![], &["1"]).await;
    leaves.next().await;
    dead.next().await; // its process was killed: nobody will acknowledge
    let second = lives.next().await;
    lives.ack(&second).await;
    node.ask_removal("1", Duration::from_secs(5)).await;
    drop(leaves);
    let control_message::Message::RemovalAnswer(answer) = node.next().await else {
        panic!()
    };
    assert!(answer.acknowledged, "{answer:?}");
}

#[tokio::test]
async fn a_client_that_saw_a_newer_revision_is_sent_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let mut sotw = plane.sotw(client("stock", &[])).await;
    sotw.subscribe(Kind::Cluster, &[], "99/0123456789abcdef", "")
        .await;
    let refused = sotw.try_next().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        refused.message().contains("the client has seen 99"),
        "{}",
        refused.message()
    );
    let mut delta = plane
        .delta(client("proxy", &[("role", "proxy"), ("revision", "99")]))
        .await;
    delta.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(
        delta.try_next().await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_client_that_saw_a_newer_revision_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let mut node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    // The server waits for two seconds; if the machine stalls for longer, the test tries again.
    for port in 7100..7105 {
        let now = plane.publisher.subscribe().borrow().revision.max(3);
        let mut sotw = plane.sotw(client("stock", &[])).await;
        let seen = format!("{}/0123456789abcdef", now + 1);
        sotw.subscribe(Kind::Endpoint, &[ECHO], &seen, "").await;
        until(|| plane.clients.len() == 1).await;
        let mut revision = 0;
        while revision <= now {
            let address = format!("127.0.0.{}:{port}", 1 + revision);
            revision = node.change(vec![echo("2", &address)], &[]).await;
        }
        match sotw.try_next().await {
            Ok(response) => {
                let (seen, _) = response
                    .as_ref()
                    .unwrap()
                    .version_info
                    .split_once('/')
                    .unwrap();
                return assert!(seen.parse::<u64>().unwrap() > now);
            }
            Err(refused) => assert!(
                refused.message().contains("the client has seen"),
                "{refused}"
            ),
        }
        until(|| plane.clients.is_empty()).await;
        plane.has(revision).await;
    }
    panic!("it did not wait");
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_or_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let mut nameless = plane.sotw(client("", &[])).await;
    nameless.subscribe(Kind::Cluster, &[], "", "").await;
    let refused = nameless.try_next().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("node.id"),
        "{}",
        refused.message()
    );

    let mut wrong = plane
        .sotw(client("envoy", &[("heddle.outbound", "here")]))
        .await;
    wrong.subscribe(Kind::Listener, &[], "", "").await;
    let refused = wrong.try_next().await.unwrap_err();
    assert!(
        refused.message().contains("heddle.outbound"),
        "{}",
        refused.message()
    );

    let mut curious = plane.delta(client("envoy", &[])).await;
    curious
        .send(DeltaDiscoveryRequest {
            type_url: "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    curious.subscribe(Kind::Listener, &[]).await;
    let response = curious.next().await;
    assert_eq!(
        response.type_url,
        Kind::Listener.url(),
        "the unknown type is left unanswered"
    );
}

#[tokio::test]
async fn schemas_come_by_name_as_they_were_given() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let descriptors = heddle_proto::DESCRIPTOR_SET;
    let sha256 = sha256(descriptors);
    let mut instance = echo("1", "127.0.0.1:7001");
    instance.schema_sha256.clone_from(&sha256);
    let node = plane.node("a", vec![instance]).await;
    let mut stream = plane.delta(proxy("b")).await;
    stream.subscribe(Kind::Schema, &[&sha256]).await;
    let missing = stream.next().await;
    assert_eq!(
        missing.removed_resources,
        [sha256.as_str()],
        "asked for before it was uploaded"
    );
    stream.ack(&missing).await;
    node.upload(&sha256, descriptors).await;
    let response = stream.next().await;
    let any = response.resources[0].resource.as_ref().unwrap();
    let schema = Schema::decode(any.value.as_slice()).unwrap();
    assert_eq!(schema.file_descriptor_set, descriptors);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test]
async fn status_shows_the_mesh_and_the_reports_of_clients() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(&folder.path().join("store")).await;
    let _a = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let _b = plane.node("b", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut status = plane.status().await;

    let mesh = status
        .get_mesh(GetMeshRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (mesh.services, mesh.instances, mesh.healthy_instances),
        (1, 2, 2)
    );
    let nodes: Vec<_> = mesh
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.alive, node.instances))
        .collect();
    assert_eq!(nodes, [("a", true, 1), ("b", true, 1)]);

    let service = status
        .get_service(GetServiceRequest {
            name: "echo".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(service.name, ECHO);
    let hidden: Vec<_> = service
        .endpoints
        .iter()
        .map(|each| each.hidden_from_direct_clients.as_str())
        .collect();
    assert_eq!(
        hidden,
        [
            "",
            "127.0.0.1:7001 is also the address of a/1: clients accept an address only once"
        ]
    );
    let none = status
        .get_service(GetServiceRequest {
            name: "ecoh".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(
        (none.code(), none.message()),
        (
            Code::NotFound,
            "no service ecoh: did you mean echo.default?"
        )
    );
    let list = status
        .list_services(ListServicesRequest {
            namespace: "shop".into(),
        })
        .await
        .unwrap();
    assert!(list.into_inner().services.is_empty());

    let mut stream = plane.sotw(client("stock", &[])).await;
    stream.subscribe(Kind::Cluster, &[], "", "").await;
    let response = stream.next().await;
    let rejection = DiscoveryRequest {
        type_url: Kind::Cluster.url().to_owned(),
        response_nonce: response.nonce,
        error_detail: Some(envoy_types::pb::google::rpc::Status {
            code: 3,
            message: "no such policy".to_owned(),
            details: Vec::new(),
        }),
        ..DiscoveryRequest::default()
    };
    stream.send(rejection).await;
    let rejected = within(async {
        loop {
            let proxies = status
                .list_proxies(ListProxiesRequest {})
                .await
                .unwrap()
                .into_inner()
                .proxies;
            match &proxies[..] {
                [proxy] if !proxy.types[0].rejected_reason.is_empty() => return proxy.clone(),
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert_eq!(
        (rejected.node_id.as_str(), rejected.role.as_str()),
        ("stock", "test")
    );
    assert_eq!(rejected.variant, "sotw");
    let clusters = &rejected.types[0];
    assert_eq!(clusters.rejected_reason, "no such policy");
    assert_eq!(clusters.rejected_version, response.version_info);
    assert_eq!(clusters.acknowledged_version, "");
    assert!(clusters.wildcard && !clusters.in_flight);
    drop(stream);
    until(|| plane.clients.is_empty()).await;
}
