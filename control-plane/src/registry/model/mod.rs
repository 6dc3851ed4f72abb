//! The records of the store as plain values: nodes, instances, services, replicas and events; and which service a path
//! is for. This module must not use the view, the store or a clock.

mod by_path;
mod event;
mod instance;
pub(in crate::registry) mod node;
mod replica;
pub(in crate::registry) mod service;

pub use by_path::{CALLERS, owner_among};
pub use event::Event;
pub use instance::Instance;
pub(crate) use instance::{INSTANCE_BYTES, INSTANCE_COPIES};
pub use node::{Clash, Node, NodeIdentity};
pub use replica::Replica;
pub(crate) use replica::is_significant;
pub use service::KnownService;
