//! One replica of the control plane as seen by the others, parsed from its record.

use std::sync::Arc;

use heddle_proto::store::v1::ReplicaRecord;

/// A running heddle-control: its record is attached to its own lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub name: Arc<str>,
    /// Random, new with each process start.
    pub process_id: String,
    /// "http://host:port" at which other replicas reach its gRPC; empty if they cannot.
    pub advertise: String,
    /// The version of Heddle.
    pub version: String,
    /// The duties that it performs, sorted.
    pub duties: Vec<Arc<str>>,
    /// The nodes with instances that have their session on this replica and missed a heartbeat.
    pub late_nodes: usize,
    /// The number of its xDS streams, as last published.
    pub xds_streams: usize,
}

/// Whether a replica must publish its number of streams again: each change is a write that all replicas see.
pub(crate) fn is_significant(published: usize, now: usize) -> bool {
    let change = published.abs_diff(now);
    change >= 10 || change.saturating_mul(10) > published
}

impl Replica {
    pub(in crate::registry) fn new(
        name: &str,
        record: ReplicaRecord,
        duties: Vec<Arc<str>>,
    ) -> Self {
        Self {
            name: name.into(),
            process_id: record.process_id,
            advertise: record.advertise,
            version: record.version,
            duties,
            late_nodes: usize::try_from(record.late_nodes).unwrap_or(usize::MAX),
            xds_streams: usize::try_from(record.xds_streams).unwrap_or(usize::MAX),
        }
    }
}
