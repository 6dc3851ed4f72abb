//! Records how each call ended, the last step of a request. Takes exactly one `Outcome` per call; gives counters and
//! histograms of one worker, summed by the control side. Nothing here may block or fail a call.

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
