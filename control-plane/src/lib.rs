//! The control plane of Heddle as a library; the rooms stand in the order of an endpoint update.

pub mod session;
pub mod store;
pub mod registry;
pub mod snapshot;
pub mod xds;
