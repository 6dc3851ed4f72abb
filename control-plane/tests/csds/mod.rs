//! What every client was sent (CSDS), requested from any of several replicas.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use envoy_types::pb::envoy::{
    service::status::v3::{
        ClientConfig, ClientStatusRequest, ClientStatusResponse,
        client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
    r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern},
};
use futures_util::future::join_all;
use heddle_control::snapshot::Kind;
use heddle_proto::control::v1::{ClientConfigsRequest, replica_client::ReplicaClient};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    ECHO,
    plane::{DeltaStream, Plane, client, echo, proxy, within},
    replicas::Replicas,
};

const UNANSWERED: &str = "heddle-unanswered-replicas";

async fn csds(plane: &Plane) -> ClientStatusDiscoveryServiceClient<Channel> {
    ClientStatusDiscoveryServiceClient::new(plane.channel().await)
}

fn of(id: &str) -> ClientStatusRequest {
    let pattern = MatchPattern::Exact(id.to_owned());
    ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(pattern),
                ..StringMatcher::default()
            }),
            ..NodeMatcher::default()
        }],
        ..ClientStatusRequest::default()
    }
}

fn ids(clients: &[ClientConfig]) -> Vec<&str> {
    let nodes = clients.iter().map(|client| client.node.as_ref().unwrap());
    nodes.map(|node| node.id.as_str()).collect()
}

fn missing(metadata: &MetadataMap) -> Option<&str> {
    metadata.get(UNANSWERED).map(|text| text.to_str().unwrap())
}

/// The answer of all replicas except `without`. Asked again while other replicas answer too late.
async fn fetch(
    plane: &Plane,
    question: ClientStatusRequest,
    without: Option<&str>,
) -> Vec<ClientConfig> {
    let mut csds = csds(plane).await;
    within(async {
        loop {
            let answer = csds.fetch_client_status(question.clone()).await;
            let (metadata, response, _) = answer.unwrap().into_parts();
            if missing(&metadata) == without {
                return response.config;
            }
        }
    })
    .await
}

/// A stream with one request. Its client reads ahead as little as possible.
async fn stream(plane: &Plane, question: ClientStatusRequest) -> Streaming<ClientStatusResponse> {
    let endpoint = Endpoint::from_shared(plane.address.clone()).unwrap();
    let endpoint = endpoint.initial_stream_window_size(64 << 10);
    let channel = endpoint.connect().await.unwrap();
    let mut csds = ClientStatusDiscoveryServiceClient::new(channel);
    let question = tokio_stream::iter([question]);
    within(csds.stream_client_status(question))
        .await
        .unwrap()
        .into_inner()
}

/// All parts of a stream's answers, and its trailers.
async fn all(
    mut answers: Streaming<ClientStatusResponse>,
) -> (Vec<ClientStatusResponse>, Option<MetadataMap>) {
    let mut parts = Vec::new();
    while let Some(part) = within(answers.message()).await.unwrap() {
        parts.push(part);
    }
    let trailers = within(answers.trailers()).await.unwrap();
    (parts, trailers)
}

/// Like `fetch`, over a stream: the parts of the answer.
async fn parts(
    plane: &Plane,
    question: ClientStatusRequest,
    without: Option<&str>,
) -> Vec<ClientStatusResponse> {
    within(async {
        loop {
            let (parts, trailers) = all(stream(plane, question.clone()).await).await;
            if trailers.as_ref().and_then(missing) == without {
                return parts;
            }
        }
    })
    .await
}

/// Clients of both replicas; the id `both` is on each.
async fn on_both(replicas: &Replicas) -> Vec<DeltaStream> {
    let mut streams = Vec::new();
    for (plane, node) in [
        (&replicas.second, client("a", &[])),
        (&replicas.second, proxy("both")),
        (&replicas.first, proxy("both")),
        (&replicas.first, client("c", &[])),
        (&replicas.second, client("d", &[])),
    ] {
        let mut stream = plane.delta(node).await;
        stream
            .subscribe(Kind::Cluster, &[ECHO, "none.default"])
            .await;
        stream.next().await;
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn any_replica_reports_every_client_and_names_the_replicas_that_are_missing() {
    let replicas = Replicas::start().await;
    let _node = replicas.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let _streams = on_both(&replicas).await;
    let everybody = ClientStatusRequest::default;
    let first = fetch(&replicas.first, everybody(), None).await;
    assert_eq!(ids(&first), ["a", "both", "both", "c", "d"]);
    let second = fetch(&replicas.second, everybody(), None).await;
    assert_eq!(first, second, "contents and order too");
    let resource = &first[4].generic_xds_configs[0];
    assert_eq!(resource.name, ECHO);
    assert!(resource.xds_config.is_some());
    let wanted = fetch(&replicas.first, of("a"), None).await;
    assert_eq!(wanted, first[..1]);
    let shown = parts(&replicas.first, of("a"), None).await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].config, wanted);

    let _silent = replicas.add_silent().await;
    let third = fetch(&replicas.first, everybody(), Some("silent")).await;
    assert_eq!(third, first, "the others are there all the same");
    let shown = parts(&replicas.second, of("a"), Some("silent")).await;
    assert_eq!(shown[0].config, wanted);
}

#[tokio::test]
async fn a_stream_that_is_refused_still_names_who_was_missing_before() {
    let replicas = Replicas::start().await;
    let _silent = replicas.add_silent().await;
    let (ask, questions) = mpsc::channel(2);
    let mut csds = csds(&replicas.first).await;
    let answers = csds.stream_client_status(ReceiverStream::new(questions));
    ask.send(ClientStatusRequest::default()).await.unwrap();
    ask.send(ClientStatusRequest {
        node_matchers: vec![NodeMatcher::default()],
        ..ClientStatusRequest::default()
    })
    .await
    .unwrap();
    let mut answers = answers.await.unwrap().into_inner();
    let answer = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(answer.config, []);
    let refused = within(answers.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert_eq!(missing(refused.metadata()), Some("silent"));
}

/// The answer of a replica to another one.
async fn reported_to_others(plane: &Plane, question: ClientStatusRequest) -> Vec<ClientConfig> {
    let mut replica = ReplicaClient::new(plane.channel().await);
    let request = ClientConfigsRequest {
        question: question.encode_to_vec().into(),
    };
    let answers = within(replica.client_configs(request)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut clients = Vec::new();
    while let Some(answer) = within(answers.message()).await.unwrap() {
        let part = ClientStatusResponse::decode(answer.part).unwrap();
        clients.extend(part.config);
    }
    clients
}

#[tokio::test]
async fn a_replica_reports_only_its_own_matching_clients_to_others() {
    let replicas = Replicas::start().await;
    let _streams = on_both(&replicas).await;
    let own = reported_to_others(&replicas.second, ClientStatusRequest::default()).await;
    assert_eq!(ids(&own), ["a", "both", "d"]);
    let wanted = reported_to_others(&replicas.second, of("d")).await;
    assert_eq!(ids(&wanted), ["d"]);
    assert_eq!(reported_to_others(&replicas.second, of("c")).await, []);

    let mut replica = ReplicaClient::new(replicas.second.channel().await);
    let request = ClientConfigsRequest {
        question: vec![0xff].into(),
    };
    let refused = within(replica.client_configs(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
}

const NAMES: usize = 2000;

/// Clients with subscriptions too large for a single message.
async fn large(plane: &Plane, count: usize) -> Vec<DeltaStream> {
    let names: Vec<_> = (0..NAMES)
        .map(|n| format!("{}-{n:04}.default", "x".repeat(100)))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let id = |number| proxy(&format!("large-{number:02}"));
    let mut streams = plane.many(count, id).await;
    for stream in &mut streams {
        stream.subscribe(Kind::Cluster, &names).await;
        stream.next().await;
    }
    streams
}

/// The number of resources of each client in an answer of several parts.
fn sizes(parts: &[ClientStatusResponse]) -> BTreeMap<&str, usize> {
    let mut sizes = BTreeMap::new();
    for client in parts.iter().flat_map(|part| &part.config) {
        let id = client.node.as_ref().unwrap().id.as_str();
        *sizes.entry(id).or_default() += client.generic_xds_configs.len();
    }
    sizes
}

#[tokio::test]
async fn an_answer_that_no_message_holds_comes_from_other_replicas_in_parts() {
    let replicas = Replicas::start().await;
    let _streams = large(&replicas.second, 20).await;
    let question = ClientStatusRequest::default();
    let parts = parts(&replicas.first, question.clone(), None).await;
    let longest = parts.iter().map(prost::Message::encoded_len).max().unwrap();
    assert!(longest <= 1 << 20, "{longest}");
    let sizes = sizes(&parts);
    assert_eq!(sizes.len(), 20);
    assert!(sizes.values().all(|size| *size == NAMES), "{sizes:?}");

    let mut csds = csds(&replicas.first).await;
    let refused = within(async {
        loop {
            match csds.fetch_client_status(question.clone()).await {
                Err(refused) => break refused,
                Ok(short) => assert_eq!(missing(short.metadata()), Some("r2"), "it was too late"),
            }
        }
    })
    .await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let one = fetch(&replicas.first, of("large-07"), None).await;
    assert_eq!(ids(&one), ["large-07"], "of several messages, and one here");
    assert_eq!(one[0].generic_xds_configs.len(), NAMES);
}

/// Forwards the first `after` bytes of a server's answers, then nothing more; the connection stays open.
async fn stall(listener: TcpListener, to: SocketAddr, after: u64) {
    while let Ok((client, _)) = listener.accept().await {
        let server = TcpStream::connect(to).await.unwrap();
        tokio::spawn(async move {
            let (mut requests, mut to_client) = client.into_split();
            let (answers, mut to_server) = server.into_split();
            let mut some = answers.take(after);
            let _ = tokio::join!(copy(&mut requests, &mut to_server), async {
                copy(&mut some, &mut to_client).await?;
                to_client.flush().await?;
                std::future::pending::<std::io::Result<()>>().await
            });
        });
    }
}

#[tokio::test]
async fn a_replica_that_falls_silent_in_its_answer_is_named_and_what_it_sent_is_included() {
    let replicas = Replicas::start().await;
    let _streams = large(&replicas.second, 20).await;
    // It forwards the answers of the second replica's process, so it must have that process id.
    let process = &replicas.second.registry.options().process_id;
    let (listener, _registry, _stop) = replicas.add("stalls", process).await;
    let to = replicas.second.address.strip_prefix("http://").unwrap();
    tokio::spawn(stall(listener, to.parse().unwrap(), 1 << 20));
    let question = ClientStatusRequest::default();
    within(Box::pin(async {
        loop {
            let parts = parts(&replicas.first, question.clone(), Some("stalls")).await;
            let sizes = sizes(&parts);
            assert_eq!(sizes.len(), 20);
            assert!(sizes["large-19"] == NAMES, "{sizes:?}");
            // Counted once from the replica itself and once through the stalling one. Repeated if the latter sent its
            // first part too late.
            if sizes["large-00"] > NAMES {
                break;
            }
        }
    }))
    .await;
}

#[tokio::test]
async fn readers_that_do_not_read_hold_up_others_for_no_longer_than_they_stay() {
    let replicas = Replicas::start().await;
    // The clients are this replica's own, so that an answer is long however late the other replica is.
    let _streams = large(&replicas.first, 20).await;
    let lazy = join_all((0..16).map(async |_| {
        let mut answers = stream(&replicas.first, ClientStatusRequest::default()).await;
        within(answers.message()).await.unwrap().unwrap();
        answers
    }));
    let lazy = lazy.await;
    let mut csds = csds(&replicas.first).await;
    let refused = within(csds.fetch_client_status(of("large-07"))).await;
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    let elsewhere = fetch(&replicas.second, of("large-07"), None).await;
    assert_eq!(ids(&elsewhere), ["large-07"]);
    drop(lazy);
    within(async { while csds.fetch_client_status(of("large-07")).await.is_err() {} }).await;
}

#[tokio::test]
async fn the_pause_of_a_reader_does_not_count_as_that_of_a_replica() {
    // Longer than a replica may take for a message.
    const PAUSE: Duration = Duration::from_millis(2200);
    let replicas = Replicas::start().await;
    let _streams = large(&replicas.second, 20).await;
    within(Box::pin(async {
        loop {
            let mut answers = stream(&replicas.first, ClientStatusRequest::default()).await;
            within(answers.message()).await.unwrap().unwrap();
            tokio::time::sleep(PAUSE).await;
            let (_, trailers) = all(answers).await;
            // If the machine stalls, the other replica really is too late.
            if trailers.as_ref().and_then(missing).is_none() {
                break;
            }
        }
    }))
    .await;
}
