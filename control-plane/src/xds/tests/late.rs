//! One stream from end to end without a transport, in virtual time.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::super::*;
use crate::{
    registry::fixture::Fixture,
    snapshot::{Kind, Publisher},
};

fn request(nonce: &str, names: &[&str]) -> Result<DeltaDiscoveryRequest, Status> {
    Ok(DeltaDiscoveryRequest {
        node: Some(Node {
            id: "slow".to_owned(),
            ..Node::default()
        }),
        type_url: Kind::Cluster.url().to_owned(),
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
    let ads = service(fixture.registry.clone(), publisher, clients.clone(), stop);
    let (say, said) = mpsc::channel(4);
    tokio::time::pause();
    let mut answers = ads.begin::<Delta>("unix".to_owned(), true, ReceiverStream::new(said));
    say.send(request("", &["a.default"])).await.unwrap();
    let mut nonce = answers.next().await.unwrap().unwrap().nonce;
    for round in 0..5 {
        // Half a minute longer than others need, each time.
        tokio::time::sleep(Duration::from_secs(50)).await;
        say.send(request(&nonce, &[&format!("b{round}.default")]))
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
