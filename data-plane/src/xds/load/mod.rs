//! Load reports (LRS): report to the control plane how much this node's callers use each service, by the locality of
//! its endpoints. Input: the workers' counters. Output: reports, on the channel of the xDS stream, at the interval that
//! the control plane sets. A control plane without load reports is rarely tried again. No call and no balancing depends
//! on this.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::Locality,
            endpoint::v3::{ClusterStats, EndpointLoadMetricStats, UpstreamLocalityStats},
        },
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse,
            load_reporting_service_client::LoadReportingServiceClient,
        },
    },
    google::protobuf,
};
use heddle_pacing::{Backoff, jittered};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use tracing::{debug, info};

use super::{
    Callers,
    client::{ClientIdentity, node},
};
use crate::observe::load::{Load, Locality as LocalityKey, take_all};

/// The metric that carries latencies: milliseconds, summed over the requests that ended.
pub const LATENCY: &str = "heddle.latency_ms";
/// Used if the control plane gives no valid interval.
const USUAL_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// The most services in one report; the rest waits for the next one. A report is a single message, because the control
/// plane shows only the last one of each node.
const MAX_SERVICES: usize = 4000;
/// Timeout for opening the stream and for sending a message.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// The least pause before a control plane without load reports is tried again.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// What the control plane asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    all: bool,
    clusters: Vec<String>,
    every: Duration,
}

impl Wanted {
    fn of(response: LoadStatsResponse) -> Self {
        let requested = response.load_reporting_interval;
        let every = requested.and_then(|d| {
            let secs = u64::try_from(d.seconds).ok()?;
            let nanos = u32::try_from(d.nanos).ok()?;
            Some(Duration::new(secs, nanos)).filter(|d| !d.is_zero())
        });
        Self {
            all: response.send_all_clusters,
            clusters: response.clusters,
            every: every
                .unwrap_or(USUAL_INTERVAL)
                .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL),
        }
    }

    fn covers(&self, service: &str) -> bool {
        self.all || self.clusters.iter().any(|name| name == service)
    }
}

/// Reports until the process ends, to the replica that the xDS stream is connected to.
pub async fn report(
    asker: ClientIdentity,
    callers: Arc<dyn Callers>,
    mut channel: watch::Receiver<Option<Channel>>,
) {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        let Ok(connected) = channel.wait_for(Option::is_some).await.map(|c| c.clone()) else {
            return;
        };
        let Some(connected) = connected else { continue };
        let started = Instant::now();
        let end = tokio::select! {
            biased;
            // The xDS stream has moved to another replica or ended, so this one is of no use.
            _ = channel.changed() => continue,
            end = open_stream(&asker, &*callers, connected) => end,
        };
        let pause = if end.code() == Code::Unimplemented {
            debug!("the control plane does not accept load reports");
            jittered(UNKNOWN_PAUSE, 1.0..1.2)
        } else {
            debug!("load reports interrupted: {end}");
            if started.elapsed() > LAST_RETRY {
                backoff.reset();
            }
            backoff.fail()
        };
        tokio::select! {
            () = sleep(pause) => {}
            _ = channel.changed() => {}
        }
    }
}

/// Runs one stream until it ends; returns why.
async fn open_stream(asker: &ClientIdentity, callers: &dyn Callers, channel: Channel) -> Status {
    let (requests, stream) = mpsc::channel(4);
    let hello = LoadStatsRequest {
        node: Some(node(asker, 0)),
        cluster_stats: Vec::new(),
    };
    // The channel is new and empty, so it has room.
    let _ = requests.try_send(hello);
    let mut client = LoadReportingServiceClient::new(channel);
    let opened = timeout(
        STREAM_TIMEOUT,
        client.stream_load_stats(ReceiverStream::new(stream)),
    )
    .await;
    match opened {
        Ok(Ok(responses)) => run_stream(callers, &requests, responses.into_inner()).await,
        Ok(Err(status)) => status,
        Err(_) => Status::deadline_exceeded(format!("not opened within {STREAM_TIMEOUT:?}")),
    }
}

async fn run_stream(
    callers: &dyn Callers,
    requests: &mpsc::Sender<LoadStatsRequest>,
    mut responses: Streaming<LoadStatsResponse>,
) -> Status {
    // Nothing is reported before the control plane says what it wants.
    let mut wanted = Wanted::default();
    let mut ticks = None;
    let mut last = Instant::now();
    loop {
        let due = async {
            match &mut ticks {
                Some(ticks) => tokio::time::Interval::tick(ticks).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            response = responses.message() => {
                let requested = match response {
                    Ok(Some(response)) => Wanted::of(response),
                    Ok(None) => return Status::unavailable("the control plane ended the stream"),
                    Err(status) => return status,
                };
                info!(every = ?requested.every, all = requested.all, "load reports are requested");
                if requested.every != wanted.every {
                    let mut every = interval(requested.every);
                    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    // The first tick comes at once, before there is anything to report.
                    every.reset();
                    ticks = Some(every);
                }
                wanted = requested;
            }
            _ = due => {
                let over = last.elapsed();
                last = Instant::now();
                let covers = |service: &str| wanted.covers(service);
                let taken = take_all(&callers.loads(), MAX_SERVICES, covers);
                // An empty report is sent too: it shows that nobody calls any more.
                match timeout(STREAM_TIMEOUT, requests.send(message(&taken, over))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Status::unavailable("the control plane ended the stream"),
                    Err(_) => return Status::deadline_exceeded(format!("nothing read for {STREAM_TIMEOUT:?}")),
                }
            }
        }
    }
}

fn message(
    taken: &BTreeMap<Arc<str>, BTreeMap<LocalityKey, Load>>,
    over: Duration,
) -> LoadStatsRequest {
    let stats = taken.iter().map(|(service, places)| ClusterStats {
        cluster_name: service.to_string(),
        upstream_locality_stats: places.iter().map(locality).collect(),
        load_report_interval: protobuf_duration(over),
        ..ClusterStats::default()
    });
    LoadStatsRequest {
        node: None,
        cluster_stats: stats.collect(),
    }
}

fn locality(((region, zone), load): (&LocalityKey, &Load)) -> UpstreamLocalityStats {
    let ended = load.succeeded + load.failed;
    let latency = EndpointLoadMetricStats {
        metric_name: LATENCY.to_owned(),
        num_requests_finished_with_metric: ended,
        total_metric_value: Duration::from_micros(load.latency_us).as_secs_f64() * 1000.0,
    };
    UpstreamLocalityStats {
        locality: Some(Locality {
            region: region.to_string(),
            zone: zone.to_string(),
            sub_zone: String::new(),
        }),
        total_successful_requests: load.succeeded,
        total_error_requests: load.failed,
        total_issued_requests: load.issued,
        total_requests_in_progress: load.in_progress,
        load_metric_stats: if ended > 0 { vec![latency] } else { Vec::new() },
        ..UpstreamLocalityStats::default()
    }
}

fn protobuf_duration(span: Duration) -> Option<protobuf::Duration> {
    Some(protobuf::Duration {
        seconds: i64::try_from(span.as_secs()).ok()?,
        nanos: i32::try_from(span.subsec_nanos()).ok()?,
    })
}

#[cfg(test)]
mod tests;
