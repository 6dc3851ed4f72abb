//! The gRPC services through which nodes and people reach the registry: node sessions and the registry API.
//! Acknowledgements are sent when the change is durable. State that another replica needs is in the store, never
//! here.

use std::{pin::Pin, time::Duration};

use crate::{names::InstanceKey, store::Revision};

mod node;
mod registry_api;
mod refusal;
mod rejected;
mod validate;
#[cfg(test)]
mod fixture;

#[cfg(test)]
pub(crate) use node::Sessions;
pub use node::{MAX_MESSAGE_BYTES, service};
pub use registry_api::registry_service;

/// Tells when connected xDS clients have acknowledged that an instance has gone.
pub trait Removals: Send + Sync + 'static {
    /// Waits until every connected client has acknowledged a state without this instance, at `revision` or later.
    /// Returns the node ids of those that had not when `max_wait` ended: none means all have.
    fn acknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        max_wait: Duration,
    ) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>>;
}
