//! The options of a registry with their defaults, and the errors of opening it. This file must not depend on other
//! parts of the registry.

use std::time::Duration;

use heddle_options::Tasks;
use tokio_util::sync::CancellationToken;

use super::wall_clock::wall_ms;
use crate::store::StoreError;

/// The options of the registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// The name of this replica, written to the `alive` key of every node with a session here. It must be unique among
    /// the replicas of a store.
    pub replica: String,
    /// Random, new with each process start. Default: a random UUID.
    pub process_id: String,
    /// "http://host:port" at which other replicas reach this one's gRPC. Default: empty, they cannot.
    pub advertise: String,
    /// The TTL of a node's lease: a node without a heartbeat for this long has gone. Default 10 s.
    pub lease_ttl: Duration,
    /// How often a node is to renew its lease. Default 3 s.
    pub renew_interval: Duration,
    pub expiry: ExpiryOptions,
    /// When services without instances are forgotten.
    pub idle: IdleOptions,
    /// When other unused records are removed.
    pub gc: GcOptions,
    /// Supervises the tasks of the registry.
    pub tasks: Tasks,
    /// How long services keep the paths that they claim, and how many claims there may be.
    pub claims: ClaimOptions,
    /// Ends the registry's tasks and all sessions.
    pub stop: CancellationToken,
    /// Milliseconds since 1970, for the times of events. Default: the system's clock; tests replace it.
    pub wall_ms: fn() -> u64,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            replica: "control".to_owned(),
            process_id: uuid::Uuid::new_v4().to_string(),
            advertise: String::new(),
            lease_ttl: Duration::from_secs(10),
            renew_interval: Duration::from_secs(3),
            expiry: ExpiryOptions::default(),
            idle: IdleOptions::default(),
            gc: GcOptions::default(),
            tasks: Tasks::default(),
            claims: ClaimOptions::default(),
            stop: CancellationToken::new(),
            wall_ms,
        }
    }
}

/// When nodes whose lease lapsed are removed.
#[derive(Clone, Debug)]
pub struct ExpiryOptions {
    /// If at least this many nodes and this share of the mesh lapse within one TTL, they are marked as suspect and not
    /// removed: probably the control plane was cut off from them. Default 3 nodes and 30 %.
    pub mass_nodes: usize,
    pub mass_percent: usize,
    /// How long a suspect node's instances stay in use at most. Default 10 min. The leader records the elapsed time
    /// after each twentieth of it, and the next leader continues from there.
    pub suspect_for: Duration,
}

impl Default for ExpiryOptions {
    fn default() -> Self {
        Self {
            mass_nodes: 3,
            mass_percent: 30,
            suspect_for: Duration::from_secs(600),
        }
    }
}

/// When services without instances are forgotten.
#[derive(Clone, Debug)]
pub struct IdleOptions {
    /// A service without instances is forgotten after this time, which starts again after a restart. Default 1 h.
    pub forget_after: Duration,
    /// If there are more services without instances, those that have had none for the longest time are forgotten.
    /// Default 1,000.
    pub at_most: usize,
}

impl Default for IdleOptions {
    fn default() -> Self {
        Self {
            forget_after: Duration::from_secs(3600),
            at_most: 1000,
        }
    }
}

/// How long services keep the paths that they claim, and how many claims there may be.
#[derive(Clone, Debug)]
pub struct ClaimOptions {
    /// A claim is deleted when no instance has served it for this long; the next leader continues the count. Default 10
    /// min.
    pub release_after: Duration,
    /// How often the time for which claims have been vacant is recorded; a new leader continues from there. Default 1
    /// min.
    pub note_every: Duration,
    /// If there are more claims without an instance, the oldest are deleted earlier. Default 10,000.
    pub at_most_vacant: usize,
    /// The most claims in the mesh. Further ones are refused and counted; their services can be called by name. Default
    /// 100,000.
    pub at_most: usize,
    /// The most claims in one namespace. Default 20,000.
    pub at_most_in_namespace: usize,
}

impl Default for ClaimOptions {
    fn default() -> Self {
        Self {
            release_after: Duration::from_secs(600),
            note_every: Duration::from_secs(60),
            at_most_vacant: 10_000,
            at_most: 100_000,
            at_most_in_namespace: 20_000,
        }
    }
}

/// When unused descriptors and the records of nodes that are gone are removed.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// The interval between runs. Default 5 min.
    pub interval: Duration,
    /// Descriptors that no instance and no service refers to are removed after this time. Default 1 h.
    pub schemas_after: Duration,
    /// If there are more such descriptors, the oldest are removed earlier. Default 1,000.
    pub max_unused_schemas: usize,
    /// The record of a node that is gone is removed after this time; each leader starts counting at zero. Default 7
    /// days.
    pub nodes_after: Duration,
    /// If more nodes are gone, the records of the oldest are removed earlier. Default 10,000.
    pub max_gone_nodes: usize,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            schemas_after: Duration::from_secs(3600),
            max_unused_schemas: 1000,
            nodes_after: Duration::from_secs(7 * 24 * 3600),
            max_gone_nodes: 10_000,
        }
    }
}

/// Why the registry could not be opened.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    #[error("the registry cannot read its store: {0}")]
    Store(#[from] StoreError),
    #[error(
        "another replica{} of this store has the name {name}: give each its own --replica name (if it was killed a \
         moment ago, its name is free within twice the --lease-ttl)",
        if advertise.is_empty() { String::new() } else { format!(" ({advertise})") }
    )]
    ReplicaTaken { name: String, advertise: String },
}
