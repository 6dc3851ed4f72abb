//! What the registry's records say, as plain values: nodes, instances, services, replicas, events, and which service a
//! path means. In come records, out go values; the view, the store's client and clocks may not come in here.

mod by_path;
mod event;
mod instance;
pub(in crate::registry) mod node;
mod replica;
pub(in crate::registry) mod service;

pub use by_path::{ByPath, CALLERS, Named, by_path, owner_among};
pub use event::Event;
pub use instance::Instance;
pub use node::{Clash, Node, NodeIdentity};
pub use replica::Replica;
pub(crate) use replica::matters;
pub use service::KnownService;
