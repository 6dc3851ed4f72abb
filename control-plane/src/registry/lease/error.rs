//! Why a session may not write. Each error names the node and the remedy.

use crate::store::StoreError;

/// Why a session may not write, or no longer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LeaseError {
    #[error(
        "node {node} is held by process {process_id} (epoch {epoch}): two nodes with one name, or an older \
         process that came back; give each node its own --node name"
    )]
    Superseded {
        node: String,
        process_id: String,
        epoch: u64,
    },
    #[error(
        "{epoch} is not an epoch of node {node}, the highest is {known}: send the one that \
         Welcome gave to this process, or 0 in its first Hello"
    )]
    EpochTooHigh {
        node: String,
        epoch: u64,
        known: u64,
    },
    #[error("the lease of node {node} expired; open a new session with the full set")]
    Lapsed { node: String },
    #[error("a newer session of the same process holds node {node}")]
    Replaced { node: String },
    #[error("other processes claim node {node} at the same time; try again")]
    Contended { node: String },
    #[error(
        "this replica cannot reach the store, and the lease of node {node} is about to expire: \
         connect to another replica"
    )]
    Cut { node: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}
