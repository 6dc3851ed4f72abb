//! The sum over all workers, as a value and as Prometheus text. Made by the control runtime on request; costs the
//! workers nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use heddle_proto::Reason;

use super::counters::Counter;
use super::metrics::{BUCKETS_US, EjectedInstance, STATUSES, Series, WorkerMetrics};

/// All calls of one (listener, service, method).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallStats {
    /// `outbound` or `inbound`.
    pub listener: &'static str,
    /// Full name of the service.
    pub service: String,
    /// `package.Service/Method` or `other`.
    pub method: String,
    /// By gRPC status.
    pub status: [u64; STATUSES],
    /// By reason, without zeros.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Latencies per bucket, not cumulative; bounds as in [`BUCKETS_US`].
    pub buckets: [u64; BUCKETS_US.len() + 1],
    /// Sum of all durations in microseconds.
    pub sum_us: u64,
    /// Attempts sent upstream.
    pub attempts: u64,
}

/// The sum of all workers' counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Sorted by listener, service, method.
    pub calls: Vec<CallStats>,
    /// In the order of [`Counter::ALL`].
    pub counters: Vec<u64>,
    /// Calls that have not ended.
    pub active_calls: usize,
    /// Calls waiting for a stream to an instance or node.
    pub pending_calls: usize,
    /// Calls waiting for endpoints or for the first table.
    pub waiting_calls: usize,
    /// Open connections from callers and proxies.
    pub downstream_connections: usize,
    /// Open connections to instances and proxies.
    pub upstream_connections: usize,
    /// Bytes received and not forwarded yet.
    pub buffered_bytes: usize,
    /// Ejected instances, with the number of workers that have ejected each.
    pub ejected: BTreeMap<EjectedInstance, usize>,
}

impl MetricsSnapshot {
    /// Adds up the workers' metrics.
    #[must_use]
    pub fn sum<'w>(workers: impl Iterator<Item = &'w WorkerMetrics>) -> Self {
        let mut sum = Self {
            counters: vec![0; Counter::ALL.len()],
            ..Self::default()
        };
        let mut calls = BTreeMap::new();
        for worker in workers {
            for series in worker.series() {
                let key = (
                    series.role.name(),
                    series.service.clone(),
                    series.method.clone(),
                );
                let stats = calls
                    .entry(key)
                    .or_insert_with(|| CallStats::empty(&series));
                stats.add(&series);
            }
            for (value, counter) in sum.counters.iter_mut().zip(Counter::ALL) {
                *value += worker.counters.get(*counter);
            }
            for instance in worker.ejected() {
                *sum.ejected.entry(instance).or_default() += 1;
            }
            sum.active_calls += gauge(&worker.calls);
            sum.pending_calls += gauge(&worker.pending);
            sum.waiting_calls += gauge(&worker.waiting);
            sum.downstream_connections += gauge(&worker.downstream);
            sum.upstream_connections += gauge(&worker.upstream);
            sum.buffered_bytes += gauge(&worker.buffered_bytes);
        }
        sum.calls = calls.into_values().collect();
        sum
    }

    /// The value of one counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or(0)
    }

    /// Prometheus text exposition format, version 0.0.4.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut out = String::with_capacity(4096);
        self.write_calls(&mut out);
        self.write_latencies(&mut out);
        self.write_counters(&mut out);
        self.write_gauges(&mut out);
        self.write_ejected(&mut out);
        out
    }

    fn write_ejected(&self, out: &mut String) {
        let name = "heddle_ejected_instances";
        let help = "Instances that at least one worker has ejected.";
        head(out, name, "gauge", help);
        let mut by_service: BTreeMap<&str, usize> = BTreeMap::new();
        for instance in self.ejected.keys() {
            *by_service.entry(&instance.service).or_default() += 1;
        }
        for (service, count) in by_service {
            let _ = writeln!(out, "{name}{{service=\"{service}\"}} {count}");
        }
    }

    /// Number of workers that have ejected the endpoint with this uid.
    #[must_use]
    pub fn ejected_by(&self, uid: u64) -> usize {
        let of = self
            .ejected
            .iter()
            .filter(|(instance, _)| instance.uid == uid);
        of.map(|(_, workers)| workers).sum()
    }

    fn write_calls(&self, out: &mut String) {
        head(
            out,
            "heddle_calls_total",
            "counter",
            "Finished calls by gRPC status.",
        );
        for call in &self.calls {
            for (status, count) in call.status.iter().enumerate().filter(|(_, n)| **n > 0) {
                let labels = call.labels();
                let _ = writeln!(
                    out,
                    "heddle_calls_total{{{labels},status=\"{status}\"}} {count}"
                );
            }
        }
        head(
            out,
            "heddle_call_failures_total",
            "counter",
            "Failures made by a proxy, by reason.",
        );
        for call in &self.calls {
            for (reason, count) in &call.reasons {
                let labels = call.labels();
                let _ = writeln!(
                    out,
                    "heddle_call_failures_total{{{labels},reason=\"{reason}\"}} {count}"
                );
            }
        }
        head(
            out,
            "heddle_attempts_total",
            "counter",
            "Calls sent upstream, retries included.",
        );
        for call in &self.calls {
            let _ = writeln!(
                out,
                "heddle_attempts_total{{{}}} {}",
                call.labels(),
                call.attempts
            );
        }
    }

    fn write_latencies(&self, out: &mut String) {
        let name = "heddle_call_duration_seconds";
        head(
            out,
            name,
            "histogram",
            "From the request's headers to the end of the response.",
        );
        for call in &self.calls {
            let labels = call.labels();
            let mut total = 0;
            for (index, count) in call.buckets.iter().enumerate() {
                total += count;
                let bound = BUCKETS_US
                    .get(index)
                    .map_or("+Inf".to_owned(), |us| seconds(*us));
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
            }
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", seconds(call.sum_us));
            let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
        }
    }

    fn write_counters(&self, out: &mut String) {
        let mut last = "";
        for (counter, value) in Counter::ALL.iter().zip(&self.counters) {
            if counter.name() != last {
                head(out, counter.name(), "counter", counter.help());
                last = counter.name();
            }
            let labels = counter.labels();
            let _ = match labels.is_empty() {
                true => writeln!(out, "{} {value}", counter.name()),
                false => writeln!(out, "{}{{{labels}}} {value}", counter.name()),
            };
        }
    }

    fn write_gauges(&self, out: &mut String) {
        let gauges = [
            (
                "heddle_active_calls",
                self.active_calls,
                "Calls that have not ended.",
            ),
            (
                "heddle_pending_calls",
                self.pending_calls,
                "Calls waiting for a stream to an instance or node.",
            ),
            (
                "heddle_waiting_calls",
                self.waiting_calls,
                "Calls waiting for endpoints from the control plane.",
            ),
            (
                "heddle_downstream_connections",
                self.downstream_connections,
                "Open connections from callers.",
            ),
            (
                "heddle_upstream_connections",
                self.upstream_connections,
                "Open connections to instances and proxies.",
            ),
            (
                "heddle_held_bytes",
                self.buffered_bytes,
                "Bytes received and not yet forwarded.",
            ),
        ];
        for (name, value, help) in gauges {
            head(out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

impl CallStats {
    fn empty(series: &Series) -> Self {
        Self {
            listener: series.role.name(),
            service: series.service.to_string(),
            method: series.method.to_string(),
            status: [0; STATUSES],
            reasons: BTreeMap::new(),
            buckets: [0; BUCKETS_US.len() + 1],
            sum_us: 0,
            attempts: 0,
        }
    }

    fn add(&mut self, series: &Series) {
        add_all(&mut self.status, &series.status);
        add_all(&mut self.buckets, &series.buckets);
        for (reason, count) in Reason::ALL.iter().zip(&series.reasons) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                *self.reasons.entry(reason.code()).or_default() += count;
            }
        }
        self.sum_us += series.sum_us.load(Ordering::Relaxed);
        self.attempts += series.attempts.load(Ordering::Relaxed);
    }

    /// Number of calls with any status.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.status.iter().sum()
    }

    fn labels(&self) -> String {
        let Self {
            listener,
            service,
            method,
            ..
        } = self;
        format!("listener=\"{listener}\",service=\"{service}\",method=\"{method}\"")
    }
}

fn add_all(sum: &mut [u64], values: &[AtomicU64]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value.load(Ordering::Relaxed);
    }
}

fn gauge(value: &AtomicUsize) -> usize {
    value.load(Ordering::Relaxed)
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Microseconds as seconds, exact, without trailing zeros.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
