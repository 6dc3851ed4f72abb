//! What became of each call: the last room on a request's way. Exactly one `Outcome` per call comes in, counters
//! and histograms of one worker go out, summed by the control runtime. Nothing here may block or fail a call.

pub mod counters;
pub mod load;
pub mod metrics;
pub mod outcome;
pub mod report;
pub mod snapshot;

pub use counters::Counter;
pub use metrics::EjectedInstance;
pub use outcome::Outcome;
pub use report::Report;
pub use snapshot::MetricsSnapshot;
