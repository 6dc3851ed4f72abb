//! What clients report (LRS) and what the control plane knows about them (CSDS), over gRPC.

use envoy_types::pb::{
    envoy::{
        admin::v3::ClientResourceStatus,
        config::{
            core::v3::Node,
            endpoint::v3::{ClusterStats, EndpointLoadMetricStats, UpstreamLocalityStats},
        },
        service::{
            load_stats::v3::{
                LoadStatsRequest, LoadStatsResponse,
                load_reporting_service_client::LoadReportingServiceClient,
            },
            status::v3::{
                ClientStatusRequest, ConfigStatus,
                client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
            },
        },
        r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::Duration as WireDuration,
};
use heddle_control::snapshot::Kind;
use heddle_proto::status::v1::{Edge, ListEdgesRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    ECHO,
    plane::{Plane, client, echo, proxy, within},
    replicas::Replicas,
};

struct Reporter {
    out: mpsc::Sender<LoadStatsRequest>,
    answers: Streaming<LoadStatsResponse>,
}

impl Reporter {
    async fn start(plane: &Plane, node: Option<Node>, stats: Vec<ClusterStats>) -> Self {
        let mut client = LoadReportingServiceClient::new(plane.channel().await);
        let (out, requests) = mpsc::channel(4);
        out.send(LoadStatsRequest {
            node,
            cluster_stats: stats,
        })
        .await
        .unwrap();
        let answers = client.stream_load_stats(ReceiverStream::new(requests));
        let answers = answers.await.unwrap().into_inner();
        Self { out, answers }
    }

    async fn report(&self, stats: Vec<ClusterStats>) {
        self.out
            .send(LoadStatsRequest {
                node: None,
                cluster_stats: stats,
            })
            .await
            .unwrap();
    }

    async fn refusal(&mut self) -> Code {
        loop {
            match within(self.answers.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a word"),
                Err(status) => return status.code(),
            }
        }
    }
}

fn calls(cluster: &str, issued: u64, failed: u64) -> ClusterStats {
    let latency = EndpointLoadMetricStats {
        metric_name: "heddle.latency_ms".to_owned(),
        num_requests_finished_with_metric: issued,
        total_metric_value: 1.5 * issued as f64,
    };
    ClusterStats {
        cluster_name: cluster.to_owned(),
        upstream_locality_stats: vec![UpstreamLocalityStats {
            total_issued_requests: issued,
            total_successful_requests: issued - failed,
            total_error_requests: failed,
            load_metric_stats: vec![latency],
            ..UpstreamLocalityStats::default()
        }],
        load_report_interval: Some(WireDuration {
            seconds: 2,
            nanos: 0,
        }),
        ..ClusterStats::default()
    }
}

/// The edges that a replica reports, as soon as there are this many and all other replicas have answered in time.
async fn edges(plane: &Plane, count: usize) -> Vec<Edge> {
    let mut status = plane.status().await;
    within(async {
        loop {
            let answer = status.list_edges(ListEdgesRequest::default()).await;
            let answer = answer.unwrap().into_inner();
            if answer.edges.len() == count && answer.unanswered.is_empty() {
                return answer.edges;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn load_reports_are_edges_on_every_replica_while_their_stream_lives() {
    let replicas = Replicas::start().await;
    let _node = replicas.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut ours = Reporter::start(&replicas.first, Some(proxy("node-b")), vec![]).await;
    let request = within(ours.answers.message()).await.unwrap().unwrap();
    assert!(request.send_all_clusters);
    let interval = request.load_reporting_interval.unwrap();
    assert_eq!((interval.seconds, interval.nanos), (0, 100_000_000));
    // Clusters of another control plane are not services of this one.
    ours.report(vec![calls(ECHO, 20, 5), calls("xds_cluster", 9, 0)])
        .await;
    let stock = Some(client("stock", &[]));
    let stock = Reporter::start(&replicas.second, stock, vec![calls(ECHO, 4, 0)]).await;

    for plane in [&replicas.first, &replicas.second] {
        let edges = edges(plane, 2).await;
        assert_eq!(
            edges[0],
            Edge {
                caller: "node-b".to_owned(),
                role: "proxy".to_owned(),
                service: ECHO.to_owned(),
                requests_per_second: 10.0,
                success_ratio: 0.75,
                latency_ms: 1.5,
                interval_seconds: 2.0,
                ..Edge::default()
            }
        );
        assert_eq!((&*edges[1].caller, &*edges[1].role), ("stock", "test"));
    }
    let mut status = replicas.first.status().await;
    let of = |service: &str| ListEdgesRequest {
        service: service.to_owned(),
    };
    let echo = status.list_edges(of("echo")).await.unwrap().into_inner();
    assert_eq!(echo.edges.len(), 2, "the short name is enough");
    let unknown = status.list_edges(of("ecko")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("echo.default"), "{unknown:?}");

    drop(stock);
    assert_eq!(edges(&replicas.first, 1).await[0].caller, "node-b");
    drop(ours);
    edges(&replicas.second, 0).await;
}

#[tokio::test]
async fn a_load_report_without_a_name_or_of_giant_size_ends_its_stream_alone() {
    let replicas = Replicas::start().await;
    let plane = &replicas.first;
    let _node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let good = Reporter::start(plane, Some(proxy("b")), vec![calls(ECHO, 1, 0)]).await;
    let mut nobody = Reporter::start(plane, None, vec![]).await;
    assert_eq!(nobody.refusal().await, Code::InvalidArgument);
    let nameless = Some(Node::default());
    let mut nameless = Reporter::start(plane, nameless, vec![]).await;
    assert_eq!(nameless.refusal().await, Code::InvalidArgument);
    let mut giant = Reporter::start(plane, Some(proxy("c")), vec![]).await;
    giant.report(vec![calls(&"x".repeat(5 << 20), 1, 0)]).await;
    assert_eq!(giant.refusal().await, Code::OutOfRange);
    assert_eq!(edges(plane, 1).await[0].caller, "b");
    drop(good);
}

#[tokio::test]
async fn client_status_reports_what_each_client_has() {
    let replicas = Replicas::start().await;
    let plane = &replicas.first;
    let _node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut stream = plane.delta(proxy("b")).await;
    stream
        .subscribe(Kind::Cluster, &[ECHO, "none.default"])
        .await;
    let clusters = stream.next().await;
    let mut other = plane.sotw(client("other", &[])).await;
    other.subscribe(Kind::Cluster, &[], "", "").await;
    other.next().await;

    let mut csds = ClientStatusDiscoveryServiceClient::new(plane.channel().await);
    let exact = MatchPattern::Exact("b".to_owned());
    let request = ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(exact),
                ..StringMatcher::default()
            }),
            ..NodeMatcher::default()
        }],
        ..ClientStatusRequest::default()
    };
    let all = csds
        .fetch_client_status(ClientStatusRequest::default())
        .await;
    let all = all.unwrap().into_inner().config;
    let ids: Vec<_> = all
        .iter()
        .map(|each| &*each.node.as_ref().unwrap().id)
        .collect();
    assert_eq!(ids, ["b", "other"]);
    let of_b = csds.fetch_client_status(request.clone()).await.unwrap();
    let of_b = of_b.into_inner().config;
    let states = |config: &[envoy_types::pb::envoy::service::status::v3::ClientConfig]| {
        let [config] = config else {
            panic!("{config:?}")
        };
        let each = config.generic_xds_configs.iter();
        each.map(|each| {
            (
                each.name.clone(),
                each.client_status(),
                each.config_status(),
            )
        })
        .collect::<Vec<_>>()
    };
    let none = (
        "none.default".to_owned(),
        ClientResourceStatus::DoesNotExist,
        ConfigStatus::NotSent,
    );
    assert_eq!(
        states(&of_b),
        [
            (
                ECHO.to_owned(),
                ClientResourceStatus::Requested,
                ConfigStatus::Stale
            ),
            none.clone(),
        ]
    );
    let sent = &of_b[0].generic_xds_configs[0];
    let resource = &clusters.resources[0];
    assert_eq!(sent.version_info, resource.version);
    assert_eq!(sent.xds_config, resource.resource);

    stream.ack(&clusters).await;
    // Each request on the stream is answered; asks until the answer is the expected one.
    let (ask, requests) = mpsc::channel(1);
    let answers = csds.stream_client_status(ReceiverStream::new(requests));
    ask.send(request.clone()).await.unwrap();
    let mut answers = answers.await.unwrap().into_inner();
    let acked = (
        ECHO.to_owned(),
        ClientResourceStatus::Acked,
        ConfigStatus::Synced,
    );
    within(async {
        loop {
            let answer = answers.message().await.unwrap().unwrap();
            if states(&answer.config) == [acked.clone(), none.clone()] {
                return;
            }
            ask.send(request.clone()).await.unwrap();
        }
    })
    .await;
    let mut unclear = request;
    unclear.node_matchers[0].node_id = None;
    ask.send(unclear).await.unwrap();
    let refused = within(answers.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("node_matchers[0].node_id"),
        "{refused:?}"
    );
}
