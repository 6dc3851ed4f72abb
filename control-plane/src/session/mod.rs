//! The gRPC services through which nodes and people reach the registry: node sessions and the registry API. A change is
//! acknowledged when it is durable. State that other replicas need is in the store, never here.

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

/// Reports when connected xDS clients have acknowledged the removal of an instance.
pub trait Removals: Send + Sync + 'static {
    /// Waits until every connected client has acknowledged a state without this instance, at `revision` or later.
    /// Returns the node ids of the clients that had not done so after `max_wait`; empty if all have.
    fn acknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        max_wait: Duration,
    ) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>>;
}
