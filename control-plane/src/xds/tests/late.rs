//! One stream from end to end without a transport, in virtual time.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::{core::v3::Node, endpoint::v3::ClusterLoadAssignment},
    service::discovery::v3::{DeltaDiscoveryRequest, Resource as WrappedResource},
};
use futures_util::{FutureExt as _, stream};
use heddle_proto::xds::v1::Schema;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::super::*;
use crate::{
    names::InstanceKey,
    registry::fixture::{Fixture, Replicas},
    session::Removals as _,
    snapshot::{Kind, Publisher, fixture::Mesh},
    store::Revision,
};

fn request(nonce: &str, names: &[&str]) -> Result<DeltaDiscoveryRequest, Status> {
    request_of(Kind::Cluster, nonce, names)
}

fn request_of(kind: Kind, nonce: &str, names: &[&str]) -> Result<DeltaDiscoveryRequest, Status> {
    Ok(DeltaDiscoveryRequest {
        node: Some(Node {
            id: "slow".to_owned(),
            ..Node::default()
        }),
        type_url: kind.url().to_owned(),
        resource_names_subscribe: super::clients::strings(names),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    })
}

#[tokio::test]
async fn a_slow_client_stays_and_one_that_stops_answering_is_cut_off() {
    let fixture = Fixture::new().await;
    let stop = CancellationToken::new();
    let publisher = Publisher::start(fixture.registry.clone(), stop.clone());
    let clients = Clients::default();
    let ads = service(fixture.membership.clone(), publisher, clients.clone(), stop);
    let (requests, stream) = mpsc::channel(4);
    tokio::time::pause();
    let mut answers = ads.begin::<Delta>(super::caller(), ReceiverStream::new(stream));
    requests.send(request("", &["a.default"])).await.unwrap();
    let mut nonce = answers.next().await.unwrap().unwrap().nonce;
    for round in 0..5 {
        // Each time half a minute longer than other streams take.
        tokio::time::sleep(Duration::from_secs(50)).await;
        requests
            .send(request(&nonce, &[&format!("b{round}.default")]))
            .await
            .unwrap();
        nonce = answers.next().await.unwrap().unwrap().nonce;
    }
    assert_eq!(clients.len(), 1);
    let start = Instant::now();
    let cut = answers.next().await.unwrap().unwrap_err();
    assert_eq!(cut.code(), Code::ResourceExhausted);
    let waited = start.elapsed().as_secs();
    assert!((60..=75).contains(&waited), "{waited} s");
    assert!(answers.next().await.is_none());
    assert!(clients.is_empty());
}

/// Issue 10, D2: a client that subscribed to the service in the moment after the removal was counted as acknowledged
/// got the removed instance, from the snapshot before.
#[tokio::test]
async fn a_subscriber_after_an_acknowledged_removal_does_not_get_what_was_removed() {
    let fixture = Fixture::new().await;
    let mut mesh = Mesh::new();
    mesh.put("a/users/1", "10.0.0.1:80");
    mesh.put("a/users/2", "10.0.0.2:80");
    let (sender, snapshots) = watch::channel(mesh.snapshot());
    let clients = Clients::default();
    let ads = service(
        fixture.membership.clone(),
        Publisher::of(snapshots),
        clients.clone(),
        CancellationToken::new(),
    );
    mesh.remove("a/users/1");
    let without = mesh.snapshot();
    let gone = InstanceKey {
        node: "a".into(),
        service: crate::registry::fixture::service("users"),
        id: "1".into(),
    };
    // The snapshot changes while the second request is read: the stream has just checked for snapshots.
    let mut polls = 0;
    let requests = stream::poll_fn(move |_| {
        polls += 1;
        if polls == 1 {
            return std::task::Poll::Ready(Some(request("", &["a.default"])));
        }
        if polls > 2 {
            return std::task::Poll::Pending;
        }
        let revision = without.revision;
        sender.send_replace(Arc::clone(&without));
        let acknowledged = clients.acknowledged(gone.clone(), Revision(revision), Duration::ZERO);
        assert_eq!(
            acknowledged.now_or_never(),
            Some(vec![]),
            "nobody uses the service"
        );
        std::task::Poll::Ready(Some(request_of(Kind::Endpoint, "", &["users.default"])))
    });
    let mut answers = ads.begin::<Delta>(super::caller(), requests);
    let response = loop {
        let response = answers.next().await.unwrap().unwrap();
        if response.type_url == Kind::Endpoint.url() {
            break response;
        }
    };
    let wrapped = WrappedResource::decode(response.resources[0].clone()).unwrap();
    let any = wrapped.resource.unwrap();
    let assignment = ClusterLoadAssignment::decode(any.value.as_slice()).unwrap();
    let count = assignment.endpoints.iter().map(|it| it.lb_endpoints.len());
    assert_eq!(count.sum::<usize>(), 1, "{assignment:?}");
}

/// Issue 10, D2: while the store could not be read, clients were sent that descriptors do not exist.
#[tokio::test]
async fn descriptors_that_cannot_be_read_now_are_not_reported_missing() {
    let mesh = Replicas::new();
    let options = Replicas::options("c1", Duration::from_secs(600));
    let (member, wire) = mesh.member(options).await;
    let registry = member.registry().clone();
    let bytes = prost_types::FileDescriptorSet { file: vec![] }.encode_to_vec();
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    registry
        .keep_schema(&sha256, bytes.clone().into())
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let publisher = Publisher::start(registry.clone(), stop.clone());
    let ads = service(member, publisher, Clients::default(), stop);
    let (requests, stream) = mpsc::channel(4);
    tokio::time::pause();
    wire.cut();
    let mut answers = ads.begin::<Delta>(super::caller(), ReceiverStream::new(stream));
    requests
        .send(request_of(Kind::Schema, "", &[&sha256]))
        .await
        .unwrap();
    let early = tokio::time::timeout(Duration::from_secs(5), answers.next()).await;
    assert!(early.is_err(), "{early:?}");
    wire.mend();
    let response = answers.next().await.unwrap().unwrap();
    assert_eq!(response.removed_resources, Vec::<String>::new());
    let wrapped = WrappedResource::decode(response.resources[0].clone()).unwrap();
    let schema = Schema::decode(wrapped.resource.unwrap().value.as_slice()).unwrap();
    assert_eq!(schema.file_descriptor_set, bytes);
}
