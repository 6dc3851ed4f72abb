//! The registry: the state of the mesh in the store, and the rules by which it changes. It has four parts: `view`
//! applies the store's events to an in-memory state; `lease` is how a session owns its node and writes its instances;
//! `membership` is this replica among the others; `leader` contains the jobs of the elected replica. They share `core`,
//! the handle on store and view. This module must not depend on gRPC, xDS or a store engine.

mod wall_clock;
mod model;
mod options;
mod view;
mod core;
mod lease;
mod membership;
mod leader;
mod start;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use core::{MAX_SCHEMA_BYTES, Registry, SchemaError, ViewChanges};
pub use lease::{LeaseError, NodeLease, NodeWrite, RemovalCauses};
pub use membership::{Lag, Membership};
#[cfg(test)]
pub(crate) use model::is_significant;
pub use model::{
    CALLERS, Clash, Event, Instance, KnownService, Node, NodeIdentity, Replica, owner_among,
};
pub(crate) use model::{INSTANCE_BYTES, INSTANCE_COPIES};
pub use options::{
    ClaimOptions, ExpiryOptions, GcOptions, IdleOptions, RegistryError, RegistryOptions,
};
pub use view::{Batch, ChangedInstances, InstanceId, View};
