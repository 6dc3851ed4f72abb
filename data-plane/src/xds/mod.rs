//! xDS: what the control plane says of the mesh. Resources come in over one delta ADS stream (or, at start, from the
//! state dir); a [`View`] of clusters, their endpoints and proto services goes out. A bad resource is rejected with its
//! reason and the last good one stays; own instances do not come in here, they are the agent's.

pub mod client;
pub mod last_good;
pub mod resources;
pub mod schemas;
pub mod translate;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tonic::transport::{Channel, Endpoint};

use crate::agent::reflect::in_full;
pub use translate::{Assignment, Index, Remote};

/// `type.googleapis.com/` and the name of each type that this proxy asks for.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const INDEX: &str = "type.googleapis.com/heddle.xds.v1.ServiceIndex";
pub const SCHEMA: &str = "type.googleapis.com/heddle.xds.v1.Schema";

/// One service as the control plane tells it.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub assignment: Arc<Assignment>,
    pub index: Option<Arc<Index>>,
}

/// The mesh as the control plane tells it, at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Services whose endpoints have come, by full name.
    pub clusters: BTreeMap<String, Cluster>,
    /// All that was asked for has been answered once, now or in the run that wrote the state dir.
    pub complete: bool,
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
}

/// Connects to a replica of the control plane. A dead one is noticed by pings within ten seconds.
///
/// # Errors
/// The reason, for people.
pub async fn dial(url: &str) -> Result<Channel, String> {
    Endpoint::from_shared(url.to_owned())
        .map_err(|e| e.to_string())?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        // Descriptors of 4 MiB and full answers of thousands of endpoints go in one piece.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .connect()
        .await
        .map_err(|e| in_full(&e))
}
