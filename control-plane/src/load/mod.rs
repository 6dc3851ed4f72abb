//! What clients say about their own calls: `envoy.service.load_stats.v3.LoadReportingService`, spoken by Envoy, by gRPC's
//! libraries and by our proxies. In come reports, out go the edges of the mesh for status and a few sums for metrics.
//! A report is kept no longer than its stream lives, and nothing is decided by it.

mod report;
mod book;
mod service;

pub(crate) use book::order;
pub use book::{Loads, MAX_ENTRIES, MAX_STREAMS, ServiceTotals, TooManyStreams};
pub use report::{LATENCY_METRIC, Load, Place, Report};
pub use service::{LoadReports, service};

#[cfg(test)]
mod tests;
