//! What clients report about their calls (`envoy.service.load_stats.v3.LoadReportingService`, used by Envoy, gRPC's
//! libraries and our proxies). Reports become the edges of the mesh for the status and totals for the metrics. A report
//! is kept no longer than its stream lives, and no decision depends on it.

mod report;
mod book;
mod service;

pub(crate) use book::order;
pub use book::{Loads, MAX_ENTRIES, MAX_STREAMS, ServiceTotals, TooManyStreams};
pub use report::{Destination, LATENCY_METRIC, Load, Report};
pub use service::{LoadReports, service};

#[cfg(test)]
mod tests;
