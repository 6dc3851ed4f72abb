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
        "--renew-interval must be at most half of --lease-ttl: otherwise one lost beat would end \
         a node's lease"
    )]
    RenewInterval,
    #[error(
        "{option} applies to etcd only, but the store is {store}: use --store etcd:URL,… or \
         remove the option"
    )]
    NotForStore { option: &'static str, store: String },
    #[error(
        "the background task {0} ended unexpectedly, which is a bug in Heddle (see the log): this \
         process has stopped so that it can be restarted"
    )]
    TaskEnded(&'static str),
    #[error("{0} and {1} must be used together: give both or neither")]
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
