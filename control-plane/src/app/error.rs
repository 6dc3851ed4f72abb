//! Why the process could not start, or why it ended. Every error names what is wrong and what to do.

use heddle_listen::{BindError, ListenOption};

use crate::{registry::RegistryError, store::StoreError};

/// Why the process could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{option} {address}: {source}")]
    Listen {
        option: &'static str,
        address: ListenOption,
        source: BindError,
    },
    #[error("{0}")]
    Exposed(String),
    #[error("the descriptors built into this program cannot be read: {0}")]
    Descriptors(#[from] tonic_reflection::server::Error),
    #[error(
        "--renew-interval must be at most half of --lease-ttl: one lost beat would end a node's lease"
    )]
    RenewInterval,
    #[error(
        "{option} is for an etcd store, but the mesh is kept in {store}: give --store etcd:URL,… or leave it out"
    )]
    NotForStore { option: &'static str, store: String },
    #[error(
        "the background task {0} has ended, which is a fault of Heddle (the log says how): this process has stopped so that \
         it is started anew"
    )]
    TaskEnded(&'static str),
    #[error("{0} and {1} go together: give both or none")]
    Together(&'static str, &'static str),
    #[error("{option} {path}: {cause}")]
    Unreadable {
        option: &'static str,
        path: String,
        cause: String,
    },
    #[error(
        "--store-ca, --store-cert and --store-key need https addresses in --store etcd:https://…"
    )]
    PlainStore,
}
