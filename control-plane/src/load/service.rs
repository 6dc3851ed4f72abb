//! The streams of `LoadReportingService`. Each client is asked once to report all its calls at an interval. A client
//! that reports faster is not read faster: its messages wait in its own connection.

use std::{pin::Pin, time::Duration};

use envoy_types::pb::{
    envoy::service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse,
        load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
    },
    google::protobuf::Duration as WireDuration,
};
use futures_util::{Stream, StreamExt as _};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Loads, Report, state::ReportStream};
use crate::{access::Caller, budget::Who, names::ServiceName, registry::Registry, xds::NodeInfo};

/// Longest report in bytes: tens of thousands of rows.
const MAX_REPORT_BYTES: usize = 4 << 20;
/// The first request must come within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// Takes load reports.
#[derive(Clone)]
pub struct LoadReports {
    registry: Registry,
    loads: Loads,
    interval: Duration,
    stop: CancellationToken,
}

/// The gRPC service; clients are asked to report once per `interval`.
#[must_use]
pub fn service(
    registry: Registry,
    loads: Loads,
    interval: Duration,
    stop: CancellationToken,
) -> LoadReportingServiceServer<LoadReports> {
    LoadReportingServiceServer::new(LoadReports {
        registry,
        loads,
        interval,
        stop,
    })
    .max_decoding_message_size(MAX_REPORT_BYTES)
}

/// Most messages read per interval; one is expected.
const MESSAGES: u32 = 2;

type Answer = Result<LoadStatsResponse, Status>;

#[tonic::async_trait]
impl LoadReportingService for LoadReports {
    type StreamLoadStatsStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        // Room for the answer to the first request, and for the final status.
        let (answers, receiver) = mpsc::channel(2);
        let reports = self.clone();
        let who = Caller::of(&request)?.account().who();
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                () = reports.stop.cancelled() => {
                    Err(Status::unavailable("the control plane is stopping"))
                }
                () = answers.closed() => Ok(()),
                ended = reports.serve(who, request.into_inner(), &answers) => ended,
            };
            if let Err(status) = ended {
                // A client that does not read notices the end of its connection.
                let _ = answers.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl LoadReports {
    async fn serve(
        &self,
        who: Who,
        mut requests: Streaming<LoadStatsRequest>,
        answers: &mpsc::Sender<Answer>,
    ) -> Result<(), Status> {
        let Ok(first) = tokio::time::timeout(FIRST_REQUEST, requests.next()).await else {
            return Err(Status::deadline_exceeded("no request came within 30 s"));
        };
        let Some(first) = first.transpose()? else {
            return Ok(());
        };
        let node = NodeInfo::parse(first.node.as_ref(), false)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let member = self
            .loads
            .join(who, &node.id, &node.role)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        // The queue is empty, so there is room.
        let _ = answers.try_send(Ok(self.report_request()));
        self.take(&member, &first);
        drop(first);
        loop {
            let due = Instant::now() + self.interval / MESSAGES;
            let Some(request) = requests.next().await.transpose()? else {
                return Ok(());
            };
            tokio::time::sleep_until(due).await;
            self.take(&member, &request);
        }
    }

    fn report_request(&self) -> LoadStatsResponse {
        LoadStatsResponse {
            send_all_clusters: true,
            load_reporting_interval: Some(WireDuration {
                seconds: i64::try_from(self.interval.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(self.interval.subsec_nanos()).unwrap_or_default(),
            }),
            ..LoadStatsResponse::default()
        }
    }

    fn take(&self, member: &ReportStream, request: &LoadStatsRequest) {
        let report = self.registry.read(|view| {
            Report::read(&request.cluster_stats, self.interval, |cluster| {
                let name = ServiceName::parse(cluster)?;
                let known =
                    view.stands_in(&name).is_some() || view.instances(&name).next().is_some();
                known.then(|| name.to_string())
            })
        });
        member.report(report, self.interval, Instant::now());
    }
}
