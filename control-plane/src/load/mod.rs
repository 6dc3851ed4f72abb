//! What clients report about their calls (`envoy.service.load_stats.v3.LoadReportingService`, used by Envoy, gRPC's
//! libraries and our proxies). Reports become the edges of the mesh for the status and totals for the metrics. A report
//! is kept no longer than its stream lives, and no decision depends on it.

mod report;
mod state;
mod service;

pub use report::{Destination, LATENCY_METRIC, Load, Report};
pub use service::{LoadReports, service};
pub(crate) use state::order;
pub use state::{Loads, MAX_ENTRIES, MAX_STREAMS, ServiceTotals, TooManyStreams};

#[cfg(test)]
mod tests;
