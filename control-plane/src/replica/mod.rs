//! What the replicas of the control plane ask each other: their clients, whether these have acknowledged a removal, and
//! the revisions that they have seen. Combined answers name the replicas that did not answer in time. No call depends
//! on this, and no state of another replica is kept.

mod clients;
mod lag;
mod peers;
mod removals;
mod configs;
mod service;

pub(crate) use clients::own_clients;
pub use configs::MeshConfigs;
pub(crate) use configs::{QueryError, TimeLimit, WHOLE};
pub use lag::watch_lag;
pub use peers::{Answers, Peers};
pub use removals::MeshRemovals;
pub use service::{ReplicaService, service};

#[cfg(test)]
mod tests;
