//! xDS: the state of the mesh from the control plane. Input: the names of all services and the endpoints of those in
//! use, over one delta ADS stream (or, at start, from the state dir). Output: a [`View`], and load reports. A bad
//! resource is rejected with its reason and the last good one is kept. The instances of this node are not here; the
//! agent has them.

pub mod client;
pub mod demand;
pub mod last_good;
pub mod load;
pub mod resources;
pub mod schemas;
pub mod translate;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    observe::load::{LocalityLoad, Use},
    worker::Workers,
};
use demand::Fetches;
pub use translate::{Assignment, Index, Remote};

/// The types that this proxy subscribes to, as type URLs.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const INDEX: &str = "type.googleapis.com/heddle.xds.v1.ServiceIndex";
pub const SCHEMA: &str = "type.googleapis.com/heddle.xds.v1.Schema";

/// One service in the control plane's state.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `None` until its endpoints are known: nobody has used it, or the answer has not come.
    pub assignment: Option<Arc<Assignment>>,
    pub index: Option<Arc<Index>>,
}

/// The control plane's state of the mesh at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Every service, by full name.
    pub clusters: BTreeMap<String, Cluster>,
    /// Every service has been named at least once, in this run or in the one that wrote the state dir.
    pub complete: bool,
}

/// What the xDS client needs from the workers.
pub trait Callers: Send + Sync {
    /// What callers on this node have done to each service so far.
    fn used(&self) -> HashMap<Arc<str>, Use>;
    /// Nobody uses these services any more: their counters are dropped.
    fn forget(&self, services: &Arc<HashSet<Arc<str>>>);
    /// The load on each service and locality, by worker.
    fn loads(&self) -> Vec<Arc<LocalityLoad>>;
}

impl Callers for Workers {
    fn used(&self) -> HashMap<Arc<str>, Use> {
        Self::used(self)
    }

    fn forget(&self, services: &Arc<HashSet<Arc<str>>>) {
        Self::forget(self, services);
    }

    fn loads(&self) -> Vec<Arc<LocalityLoad>> {
        Self::loads(self)
    }
}

/// The status of the stream, for readiness and `/config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStatus {
    /// The replica's URL while connected.
    pub connected: Option<String>,
    /// Why it is not connected.
    pub error: String,
    /// Responses accepted and rejected since start.
    pub accepted: u64,
    pub rejected: u64,
    /// The reason of the last rejection, by type.
    pub rejections: BTreeMap<String, String>,
    /// The newest `system_version_info`, by type.
    pub versions: BTreeMap<String, String>,
    /// The number of services whose endpoints are known (`held`) and in demand (`wanted`).
    pub held: usize,
    pub wanted: usize,
    pub fetches: Fetches,
}
