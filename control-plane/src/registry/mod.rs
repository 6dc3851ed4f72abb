//! The registry: the state of the mesh as the store has it, and the rules by which it changes. It has four parts:
//! `view` is the fold of the store's events; `lease` is how a session holds its node and writes its instances;
//! `membership` is this replica among the others; `leader` is what one elected replica does for all. They share
//! `core`, the handle on store and view. No gRPC, no xDS and no engine of the store may come in here.

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
    ByPath, CALLERS, Clash, Event, Instance, KnownService, Named, Node, NodeIdentity, Replica,
    by_path, owner_among,
};
pub use options::{
    ClaimOptions, ExpiryOptions, GcOptions, IdleOptions, RegistryError, RegistryOptions,
};
pub use view::{Batch, ChangedInstances, InstanceId, View};
