//! The options of a registry with their defaults, and the errors of opening it. No other part of the registry may
//! come in here.

use std::time::Duration;

use heddle_options::Tasks;
use tokio_util::sync::CancellationToken;

use super::wall_clock::wall_ms;
use crate::store::StoreError;

/// How the registry keeps its nodes.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Name of this replica, written beside the lease of every node whose session it holds. No two replicas of a store
    /// have one name.
    pub replica: String,
    /// Random, new with each process start. Default: such a one.
    pub process_id: String,
    /// "http://host:port" where other replicas reach this one's gRPC; empty (the default): nowhere.
    pub advertise: String,
    /// A node that is silent for so long has gone. Default 10 s.
    pub lease_ttl: Duration,
    /// How often a node shall renew its lease. Default 3 s.
    pub renew_interval: Duration,
    pub expiry: ExpiryOptions,
    /// How long services without instances stay known.
    pub idle: IdleOptions,
    /// How long other things stay that nobody uses.
    pub gc: GcOptions,
    /// Supervises the tasks of the registry.
    pub tasks: Tasks,
    /// How long services keep the paths that they claim, and how many there may be.
    pub claims: ClaimOptions,
    /// Ends the registry's tasks and all sessions.
    pub stop: CancellationToken,
    /// Milliseconds since 1970, for the times of events. Default: the system's clock; tests have others.
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

/// How lapsed nodes leave.
#[derive(Clone, Debug)]
pub struct ExpiryOptions {
    /// This many nodes at least, and this share of the mesh, that lapse within one TTL are taken for cut off: it is
    /// likelier that the control plane is. Default 3 nodes and 30 %.
    pub mass_nodes: usize,
    pub mass_percent: usize,
    /// How long a suspect node's instances stay in use at most. Default 10 min. A leader notes the time that has
    /// passed whenever a twentieth of it has; the next one goes on from there.
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

/// How long services without instances stay known.
#[derive(Clone, Debug)]
pub struct IdleOptions {
    /// A service without instances is forgotten after so long; counted again after a restart. Default 1 h.
    pub forget_after: Duration,
    /// Of more services without instances those that are so for the longest time are forgotten. Default 1,000.
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
    /// A claim is deleted when no instance has served it for so long; counted on by the next leader. Default 10 min.
    pub release_after: Duration,
    /// How often it is noted for how long claims have been so: a new leader knows of the time until then. Default 1 min.
    pub note_every: Duration,
    /// Of more claims without an instance the oldest are deleted earlier. Default 10,000.
    pub at_most_vacant: usize,
    /// Claims of the whole mesh. What comes later claims nothing, is counted, and is called by its name. Default 100,000.
    pub at_most: usize,
    /// Claims of one namespace. Default 20,000.
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

/// How long things stay that nobody uses.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// How often it is looked. Default 5 min.
    pub interval: Duration,
    /// Descriptors that no instance and no service names go after so long. Default 1 h.
    pub schemas_after: Duration,
    /// Of more such descriptors the oldest go earlier. Default 1,000.
    pub max_unused_schemas: usize,
    /// The record of a node that has gone is forgotten after so long; counted anew by each leader. Default 7 days.
    pub nodes_after: Duration,
    /// Of more nodes that have gone the oldest are forgotten. Default 10,000.
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
