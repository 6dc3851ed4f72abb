//! What the replicas of the control plane know together: clients, whether they have acknowledged a removal, and whether
//! this one lags. In come the replicas that the view shows, and their questions; out go answers of all of them, with
//! the names of those that did not answer in time. The data path needs nothing of this, and no state of another replica
//! is kept here.

mod clients;
mod lag;
mod peers;
mod removals;
mod configs;
mod service;

pub(crate) use clients::own_clients;
pub use configs::MeshConfigs;
pub(crate) use configs::{AskError, Patience, WHOLE};
pub use lag::watch_lag;
pub use peers::{Answers, Peers};
pub use removals::MeshRemovals;
pub use service::{ReplicaService, service};

#[cfg(test)]
mod tests;
