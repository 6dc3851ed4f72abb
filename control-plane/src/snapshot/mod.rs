//! The registry's view as xDS resources: encoded once, versioned by content, shared by all streams. Each snapshot is
//! immutable and names what changed in it. This module must not use streams, subscriptions or clients; only `publish`
//! uses the registry's handle and the time.

mod kind;
mod resource;
mod order;
mod digest;
mod row;
mod rows;
mod totals;
mod content;
mod assignment;
mod build;
mod outbound;
mod tables;
mod check;
mod pacing;
mod publish;

pub use assignment::{Assignment, Endpoint};
pub use build::Builder;
pub use check::{UnresolvedReference, check};
pub use content::{Audience, Reading, ServiceContent, hidden_from_direct_clients};
pub use kind::{Kind, PerKind};
pub use order::{FLOW, ROUTES, TARGETS, made_before};
pub use outbound::{OUTBOUND, listener as outbound_listener};
pub use publish::Publisher;
pub(crate) use resource::version_of;
pub use resource::{Encodes, Resource};
pub use tables::{Changed, Snapshot, Table};

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
