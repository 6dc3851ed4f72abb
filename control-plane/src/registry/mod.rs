//! The registry: the store's content as the mesh sees it, and the rules by which it changes. Sessions write here
//! through the lease of their node; snapshots, status and the registry API read the view and hear what changed.
//! No gRPC and no xDS comes in here, and no engine of the store.

use std::time::Duration;

use heddle_options::Tasks;
use tokio_util::sync::CancellationToken;

use crate::store::StoreError;

mod instance;
mod by_path;
mod node;
mod replica;
mod event;
mod instance_events;
mod view;
mod handle;
mod epoch;
mod clash;
mod lease;
mod reach;
mod lag;
mod presence;
mod duty;
mod expiry;
mod sweep;
mod service;
mod idle;
mod keep;
mod claims;
mod gc;
mod schema;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use by_path::{ByPath, CALLERS, Named, by_path, owner_among};
pub use claims::ClaimOptions;
pub use event::Event;
pub use expiry::ExpiryOptions;
pub use gc::GcOptions;
pub use handle::{Registry, Subscription};
pub use idle::IdleOptions;
pub use instance::Instance;
pub use lag::Lag;
pub use lease::{Gone, LeaseError, NodeIdentity, NodeLease, NodeWrite};
pub use node::{Clash, Node};
pub use replica::Replica;
pub(crate) use replica::matters;
pub use schema::{MAX_SCHEMA_BYTES, SchemaError};
pub use service::KnownService;
pub use view::{Batch, Place, Touched, View};

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
    /// What is told when one of the registry's tasks ends by itself.
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
            wall_ms: event::wall_ms,
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
