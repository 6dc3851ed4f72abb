//! xDS: what the control plane says of the mesh. Every service's name and the endpoints of those in use come in over one
//! delta ADS stream (or, at start, from the state dir); a [`View`] goes out, and load reports. A bad resource is rejected
//! with its reason and the last good one stays; own instances do not come in here, they are the agent's.

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
    time::Duration,
};

use heddle_proto::error_text::with_causes;
use tonic::transport::{Channel, Endpoint};

use crate::{
    observe::load::{LocalityLoad, Use},
    worker::Workers,
};
use demand::Fetches;
pub use translate::{Assignment, Index, Remote};

/// `type.googleapis.com/` and the name of each type that this proxy asks for.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const INDEX: &str = "type.googleapis.com/heddle.xds.v1.ServiceIndex";
pub const SCHEMA: &str = "type.googleapis.com/heddle.xds.v1.Schema";

/// One service as the control plane tells it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `None` while its endpoints are not held: nobody has used it, or the answer has not come.
    pub assignment: Option<Arc<Assignment>>,
    pub index: Option<Arc<Index>>,
}

/// The mesh as the control plane tells it, at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Every service, by full name.
    pub clusters: BTreeMap<String, Cluster>,
    /// Every service has been named once, now or in the run that wrote the state dir.
    pub complete: bool,
}

/// What the control side asks of those that carry the calls.
pub trait Callers: Send + Sync {
    /// What callers on this node have done to each service, ever.
    fn used(&self) -> HashMap<Arc<str>, Use>;
    /// NoCallers uses these any more: what is counted of them goes.
    fn forget(&self, services: &Arc<HashSet<Arc<str>>>);
    /// What they do to each service and locality, worker by worker.
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

/// How the stream stands, for readiness and `/config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStatus {
    /// The replica's URL while connected.
    pub connected: Option<String>,
    /// Why it is not.
    pub error: String,
    /// Responses taken and rejected since start.
    pub accepted: u64,
    pub rejected: u64,
    /// Reason of the last rejection, by type.
    pub rejections: BTreeMap<String, String>,
    /// Newest `system_version_info`, by type.
    pub versions: BTreeMap<String, String>,
    /// Services whose endpoints are held, and that are asked for.
    pub held: usize,
    pub wanted: usize,
    pub fetches: Fetches,
}

/// Two silent seconds, then a ping that has three to be answered: a replica that is cut off without a word (no reset of
/// its connections) is left within five seconds.
const SILENCE: Duration = Duration::from_secs(2);
const PING_WAIT: Duration = Duration::from_secs(3);

/// Connects to a replica of the control plane, for the xDS stream and the node session alike.
///
/// # Errors
/// The reason, for people.
pub async fn dial(url: &str) -> Result<Channel, String> {
    Endpoint::from_shared(url.to_owned())
        .map_err(|e| e.to_string())?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(PING_WAIT)
        .keep_alive_while_idle(true)
        // Descriptors of 4 MiB and full answers of thousands of endpoints go in one piece.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .connect()
        .await
        .map_err(|e| with_causes(&e))
}
