//! A replica that gets nothing from the store while another does: real replicas with real connections between them and
//! to their clients. The test waits as long as the product takes to notice it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    service::Routes,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{
    budget::{Admission, Budget, MeshSize},
    grpc,
    listen::Socket,
    load::Loads,
    registry::{
        Membership, NodeLease, Registry, RegistryOptions,
        fixture::{Replicas, Wire, identity, until, within},
    },
    snapshot::{Kind, Publisher},
    xds::{self, Clients},
};

const LONG: Duration = Duration::from_secs(600);

struct Replica {
    membership: Membership,
    registry: Registry,
    wire: Arc<Wire>,
    address: String,
    stop: CancellationToken,
}

impl Replica {
    async fn start(mesh: &Replicas, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bound = listener.local_addr().unwrap();
        let address = format!("http://{bound}");
        let options = RegistryOptions {
            advertise: address.clone(),
            ..Replicas::options(name, LONG)
        };
        let stop = options.stop.clone();
        let (membership, wire) = mesh.member(options).await;
        let registry = membership.registry().clone();
        let publisher = Publisher::start(registry.clone(), stop.clone());
        let clients = Clients::default();
        let peers = Peers::follow(registry.clone(), stop.clone());
        watch_lag(membership.clone(), peers, stop.clone());
        let mut routes = Routes::builder();
        routes
            .add_service(service(
                membership.clone(),
                publisher.clone(),
                clients.clone(),
                Loads::default(),
            ))
            .add_service(xds::service(
                membership.clone(),
                publisher,
                clients,
                stop.clone(),
            ));
        let socket = Socket::Tcp(listener, bound);
        let admission = Admission::new(Budget::new(1 << 30), MeshSize::default);
        tokio::spawn(grpc::serve(
            socket,
            routes.routes(),
            admission,
            stop.clone(),
        ));
        Self {
            membership,
            registry,
            wire,
            address,
            stop,
        }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// Waits until it lags, or no longer lags.
    async fn until_lags(&self, lags: bool) {
        let mut lag = self.membership.lag();
        let changed = lag.wait_for(|lag| lag.is_some() == lags);
        within(changed).await.unwrap();
    }
}

/// Forwards connections to an address, and counts them.
async fn counted(to: &str) -> (Channel, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let (to, counter) = (to.replace("http://", ""), Arc::clone(&count));
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            let mut far = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let channel = Endpoint::from_shared(address).unwrap().connect().await;
    (channel.unwrap(), count)
}

/// A stream that has got its first answer.
#[derive(Debug)]
struct Subscribed {
    answers: Streaming<DeltaDiscoveryResponse>,
    /// The client's side is open while this exists.
    _say: mpsc::Sender<DeltaDiscoveryRequest>,
}

async fn subscribe(channel: &Channel) -> Result<Subscribed, Status> {
    let (requests, stream) = mpsc::channel(1);
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "client".to_owned(),
            ..Node::default()
        }),
        type_url: Kind::Cluster.url().to_owned(),
        resource_names_subscribe: vec!["a.default".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let call = client.delta_aggregated_resources(ReceiverStream::new(stream));
    let mut answers = call.await?.into_inner();
    answers.message().await?;
    Ok(Subscribed {
        answers,
        _say: requests,
    })
}

/// How a new stream is refused. If the connection ended before the request was handled, another stream is opened.
async fn refused(channel: &Channel) -> Status {
    loop {
        let status = subscribe(channel).await.unwrap_err();
        // The transport's message for a connection that ended during the request.
        let unheard = status.message().contains("h2 protocol error");
        if status.code() != Code::Cancelled && !unheard {
            return status;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_replica_that_lags_are_sent_elsewhere_until_it_has_caught_up() {
    let mesh = Replicas::new();
    let first = Replica::start(&mesh, "r1").await;
    let second = Replica::start(&mesh, "r2").await;
    until(&second.registry, |view| view.replicas().count() == 2).await;
    until(&first.registry, |view| view.replicas().count() == 2).await;
    let (channel, connections) = counted(&second.address).await;
    let mut stream = subscribe(&channel).await.unwrap();

    second.wire.cut();
    let claimed = NodeLease::claim(&first.registry, &identity("a", "p")).await;
    let ended = within(stream.answers.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let why = ended.message();
    assert!(why.contains("and replica r1 has seen"), "{why}");
    // Its connection ends too, so that a load balancer chooses again; a quicker client is refused on the old one.
    within(async {
        loop {
            let refused = refused(&channel).await;
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            if connections.load(Ordering::Relaxed) >= 2 {
                break;
            }
        }
    })
    .await;
    assert_eq!(*first.membership.lag().borrow(), None);
    within(subscribe(&first.channel().await)).await.unwrap();

    second.wire.mend();
    second.until_lags(false).await;
    within(subscribe(&channel)).await.unwrap();
    drop(claimed);
    for replica in [&first, &second] {
        replica.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_news_is_better_than_none() {
    let mesh = Replicas::new();
    let first = Replica::start(&mesh, "r1").await;
    let second = Replica::start(&mesh, "r2").await;
    until(&second.registry, |view| view.replicas().count() == 2).await;
    second.wire.cut();
    let claimed = NodeLease::claim(&first.registry, &identity("a", "p")).await;
    second.until_lags(true).await;
    first.stop.cancel();
    second.until_lags(false).await;
    within(subscribe(&second.channel().await)).await.unwrap();
    drop(claimed);
    second.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_address_leads_to_another_has_not_answered() {
    let mesh = Replicas::new();
    let first = Replica::start(&mesh, "r1").await;
    let options = RegistryOptions {
        advertise: first.address.clone(),
        ..Replicas::options("r2", LONG)
    };
    let (second, _) = mesh.join_as(options).await;
    for registry in [&first.registry, &second] {
        until(registry, |view| view.replicas().count() == 2).await;
        let peers = Peers::follow(registry.clone(), first.stop.clone());
        let answers = within(peers.list_clients()).await;
        let by_itself = registry.options().replica == "r2";
        assert_eq!(answers.answers.len(), usize::from(by_itself));
        assert_eq!(answers.unanswered.is_empty(), by_itself);
    }
    first.stop.cancel();
    second.options().stop.cancel();
}
