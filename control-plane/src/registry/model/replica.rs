//! One replica of the control plane as the others know it, parsed from its record.

use std::sync::Arc;

use heddle_proto::store::v1::ReplicaRecord;

/// A heddle-control that serves now: its record hangs on its own lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub name: Arc<str>,
    /// Random, new with each process start.
    pub process_id: String,
    /// "http://host:port" where other replicas reach its gRPC; empty: nowhere.
    pub advertise: String,
    /// Heddle's.
    pub version: String,
    /// The duties that it holds, sorted.
    pub duties: Vec<Arc<str>>,
    /// Nodes with instances whose session it holds and that missed a beat.
    pub late_nodes: usize,
    /// xDS streams that it holds, as it last told.
    pub xds_streams: usize,
}

/// Whether others must hear that a replica holds so many streams now: each change is a write that all see.
pub(crate) fn is_significant(told: usize, now: usize) -> bool {
    let change = told.abs_diff(now);
    change >= 10 || change.saturating_mul(10) > told
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
