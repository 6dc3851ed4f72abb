//! The registry: what the store says of the mesh, and the rules by which that changes. Four parts with one direction:
//! `view` is the fold of the store's events; `lease` is how a session holds its node and writes its instances;
//! `membership` is this replica among the others; `leader` is what one elected replica does for all. They share `core`,
//! the handle on the store and the view. No gRPC, no xDS and no engine of the store may come in here.

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

pub use core::{MAX_SCHEMA_BYTES, Registry, SchemaError, Subscription};
pub use lease::{Gone, LeaseError, NodeLease, NodeWrite};
pub use membership::{Lag, Membership};
#[cfg(test)]
pub(crate) use model::matters;
pub use model::{
    ByPath, CALLERS, Clash, Event, Instance, KnownService, Named, Node, NodeIdentity, Replica,
    by_path, owner_among,
};
pub use options::{
    ClaimOptions, ExpiryOptions, GcOptions, IdleOptions, RegistryError, RegistryOptions,
};
pub use view::{Batch, Place, Touched, View};
