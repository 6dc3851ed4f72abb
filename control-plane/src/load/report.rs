//! One report as plain values, checked and bounded. What is not about services of the mesh is only counted. Pure: a
//! function looks up the services that the mesh knows.

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::{
    envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats},
    google::protobuf::Duration as WireDuration,
};

/// The named metric in which a client sends latencies: milliseconds, summed over the calls that ended with it.
pub const LATENCY_METRIC: &str = "heddle.latency_ms";
/// Most rows of one report that are read; further ones are left out.
const MAX_ROWS: usize = 10_000;
/// Longest name of a cluster or locality that is read; a service's full name has at most 127 bytes.
const MAX_NAME_BYTES: usize = 256;
/// A reported interval outside these bounds is not plausible.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// Where calls went: `<service>.<namespace>`, and "region/zone" of the endpoints (empty if they have none).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub service: String,
    pub locality: String,
}

/// What one client did in one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    pub issued: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub in_progress: u64,
    pub dropped: u64,
    /// Sum and number of the reported latencies.
    pub latency_ms: f64,
    pub latencies: u64,
    pub interval: Duration,
}

impl Load {
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        // Some clients count only calls that ended.
        let begun = self.issued.max(self.succeeded.saturating_add(self.failed));
        number(begun) / self.interval.max(MIN_INTERVAL).as_secs_f64()
    }

    /// 1 if nothing ended.
    #[must_use]
    pub fn success_ratio(&self) -> f64 {
        let ended = self.succeeded.saturating_add(self.failed);
        if ended == 0 {
            return 1.0;
        }
        number(self.succeeded) / number(ended)
    }

    /// Of the calls with a reported latency; 0 if there are none.
    #[must_use]
    pub fn mean_latency_ms(&self) -> f64 {
        if self.latencies == 0 {
            return 0.0;
        }
        self.latency_ms / number(self.latencies)
    }

    fn add(&mut self, stats: &UpstreamLocalityStats) {
        let sum = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        sum(&mut self.issued, stats.total_issued_requests);
        sum(&mut self.succeeded, stats.total_successful_requests);
        sum(&mut self.failed, stats.total_error_requests);
        sum(&mut self.in_progress, stats.total_requests_in_progress);
        for metric in &stats.load_metric_stats {
            let value = metric.total_metric_value;
            if metric.metric_name == LATENCY_METRIC && value.is_finite() && value >= 0.0 {
                self.latency_ms += value;
                sum(
                    &mut self.latencies,
                    metric.num_requests_finished_with_metric,
                );
            }
        }
    }
}

/// For people to read: rounded beyond 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

/// One client's last interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub loads: BTreeMap<Destination, Load>,
    /// Rows that were left out: of services that are not in the mesh, with a bad name, or too many.
    pub left_out: u64,
}

impl Report {
    /// `known` returns the full name of a service of the mesh by its cluster's name; `usual` is the interval of clients
    /// that do not report theirs.
    #[must_use]
    pub fn read(
        stats: &[ClusterStats],
        usual: Duration,
        known: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut report = Self::default();
        let mut room = MAX_ROWS;
        for cluster in stats {
            let rows = cluster.upstream_locality_stats.len().max(1);
            let service = (rows <= room && cluster.cluster_name.len() <= MAX_NAME_BYTES)
                .then(|| known(&cluster.cluster_name))
                .flatten();
            match service {
                Some(service) => {
                    room -= rows;
                    report.take(&service, cluster, usual);
                }
                None => {
                    // Unknown names count against the limit too, which bounds the number of lookups.
                    room = room.saturating_sub(1);
                    report.left_out += rows as u64;
                }
            }
        }
        report
    }

    fn take(&mut self, service: &str, cluster: &ClusterStats, usual: Duration) {
        let interval = interval(cluster.load_report_interval.as_ref()).unwrap_or(usual);
        let destination = |locality: String| Destination {
            service: service.to_owned(),
            locality,
        };
        let mut first = None;
        for stats in &cluster.upstream_locality_stats {
            let Some(destination) = locality(stats).map(destination) else {
                self.left_out += 1;
                continue;
            };
            // Several priorities may share a locality.
            let load = self.loads.entry(destination.clone()).or_default();
            load.interval = interval;
            load.add(stats);
            first.get_or_insert(destination);
        }
        if cluster.total_dropped_requests > 0 {
            // Dropped before a locality was chosen: counted once, in a locality that has a row if there is one.
            let destination = first.unwrap_or_else(|| destination(String::new()));
            let load = self.loads.entry(destination).or_default();
            load.interval = interval;
            load.dropped = load.dropped.saturating_add(cluster.total_dropped_requests);
        }
    }
}

fn locality(stats: &UpstreamLocalityStats) -> Option<String> {
    let Some(locality) = &stats.locality else {
        return Some(String::new());
    };
    if locality.region.len() + locality.zone.len() >= MAX_NAME_BYTES {
        return None;
    }
    if locality.region.is_empty() && locality.zone.is_empty() {
        return Some(String::new());
    }
    Some(format!("{}/{}", locality.region, locality.zone))
}

fn interval(given: Option<&WireDuration>) -> Option<Duration> {
    let given = given?;
    let seconds = u64::try_from(given.seconds).ok()?;
    let nanos = u32::try_from(given.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    let given = Duration::new(seconds, nanos);
    (MIN_INTERVAL..=MAX_INTERVAL)
        .contains(&given)
        .then_some(given)
}
