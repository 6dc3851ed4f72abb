//! Reports to a control plane whose every message the test sends.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;

use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use futures_util::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, transport::Endpoint};

use super::*;
use crate::observe::load::{LocalityLoad, Use};

struct Visit {
    requests: Streaming<LoadStatsRequest>,
    answers: mpsc::Sender<Result<LoadStatsResponse, Status>>,
}

struct Lrs(mpsc::Sender<Visit>);

#[tonic::async_trait]
impl LoadReportingService for Lrs {
    type StreamLoadStatsStream =
        Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let requests = request.into_inner();
        let visit = Visit { requests, answers };
        self.0
            .send(visit)
            .await
            .map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn lrs() -> (Channel, mpsc::Receiver<Visit>) {
    let (visits, received) = mpsc::channel(4);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = LoadReportingServiceServer::new(Lrs(visits));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Endpoint::from_shared(url).unwrap().connect_lazy();
    (channel, received)
}

struct Two(Vec<Arc<LocalityLoad>>);

impl Callers for Two {
    fn used(&self) -> HashMap<Arc<str>, Use> {
        HashMap::new()
    }
    fn forget(&self, _: &Arc<HashSet<Arc<str>>>) {}
    fn loads(&self) -> Vec<Arc<LocalityLoad>> {
        self.0.clone()
    }
}

fn asker() -> ClientIdentity {
    ClientIdentity {
        node: "a".into(),
        process_id: "p1".into(),
        region: "eu".into(),
        zone: "eu-1".into(),
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future)
        .await
        .expect("in time")
}

fn wanted(all: bool, clusters: &[&str]) -> LoadStatsResponse {
    LoadStatsResponse {
        clusters: clusters.iter().map(|&c| c.to_owned()).collect(),
        send_all_clusters: all,
        load_reporting_interval: protobuf_duration(Duration::from_millis(10)),
        report_endpoint_granularity: false,
    }
}

#[tokio::test]
async fn what_callers_did_is_reported_by_service_and_locality() {
    let loads = vec![
        Arc::new(LocalityLoad::new("users.shop", "eu", "eu-1")),
        Arc::new(LocalityLoad::new("users.shop", "us", "")),
        Arc::new(LocalityLoad::new("echo.default", "eu", "eu-1")),
    ];
    let (channel, mut visits) = lrs().await;
    let (_kept, channel) = watch::channel(Some(channel));
    let callers = Arc::new(Two(loads.clone()));
    let task = tokio::spawn(report(asker(), callers, channel));
    let mut visit = soon(visits.recv()).await.unwrap();
    let hello = soon(visit.requests.message()).await.unwrap().unwrap();
    assert_eq!(hello.node.unwrap().id, "a");
    assert!(hello.cluster_stats.is_empty());
    for load in &loads {
        load.begin();
        load.begin();
        load.end(true, Duration::from_millis(250));
    }
    let only = wanted(false, &["users.shop"]);
    visit.answers.send(Ok(only)).await.unwrap();
    // The shortest interval, not the requested one.
    let begun = Instant::now();
    let report = soon(visit.requests.message()).await.unwrap().unwrap();
    assert!(begun.elapsed() >= SHORTEST_INTERVAL / 2);
    assert!(report.node.is_none());
    let [users] = report.cluster_stats.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(users.cluster_name, "users.shop");
    assert!(users.load_report_interval.is_some());
    let [eu, us] = users.upstream_locality_stats.as_slice() else {
        panic!("{users:?}");
    };
    let place = |stats: &UpstreamLocalityStats| {
        let locality = stats.locality.clone().unwrap();
        (locality.region, locality.zone)
    };
    assert_eq!(place(eu), ("eu".into(), "eu-1".into()));
    assert_eq!(place(us), ("us".into(), String::new()));
    let numbers = (
        eu.total_issued_requests,
        eu.total_successful_requests,
        eu.total_error_requests,
        eu.total_requests_in_progress,
    );
    assert_eq!(numbers, (2, 1, 0, 1));
    let [latency] = eu.load_metric_stats.as_slice() else {
        panic!("{eu:?}");
    };
    assert_eq!(latency.metric_name, "heddle.latency_ms");
    assert_eq!(latency.num_requests_finished_with_metric, 1);
    assert!((latency.total_metric_value - 250.0).abs() < 1e-9);

    // A service that is requested later has lost nothing.
    visit.answers.send(Ok(wanted(true, &[]))).await.unwrap();
    let echo = loop {
        let report = soon(visit.requests.message()).await.unwrap().unwrap();
        let found = report
            .cluster_stats
            .into_iter()
            .find(|c| c.cluster_name == "echo.default");
        if let Some(echo) = found {
            break echo;
        }
    };
    assert_eq!(echo.upstream_locality_stats[0].total_issued_requests, 2);
    // When nobody calls any more, that is reported.
    for load in &loads {
        load.end(false, Duration::ZERO);
    }
    while !soon(visit.requests.message())
        .await
        .unwrap()
        .unwrap()
        .cluster_stats
        .is_empty()
    {}
    // A stream that breaks is reopened.
    drop(visit);
    let mut visit = soon(visits.recv()).await.unwrap();
    assert!(
        soon(visit.requests.message())
            .await
            .unwrap()
            .unwrap()
            .node
            .is_some()
    );
    task.abort();
}

#[tokio::test]
async fn a_control_plane_without_load_reports_is_left_alone_but_the_next_one_is_tried() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let without = Endpoint::from_shared(url).unwrap().connect_lazy();
    let status = open_stream(&asker(), &Two(Vec::new()), without.clone()).await;
    assert_eq!(status.code(), Code::Unimplemented);

    let (channels, channel) = watch::channel(Some(without));
    let task = tokio::spawn(report(asker(), Arc::new(Two(Vec::new())), channel));
    let (with, mut visits) = lrs().await;
    channels.send_replace(Some(with));
    soon(visits.recv()).await.unwrap();
    task.abort();
}
