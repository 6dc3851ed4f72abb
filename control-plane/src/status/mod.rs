//! Read-only answers for people and tools: the state of the mesh and what each client was sent. Other replicas are
//! asked for what only they know. Nothing is changed or decided here.

mod events;
mod mesh;
mod proxies;
mod shared;
mod verdict;
mod edges;
mod csds;

pub use csds::{Csds, csds};
pub use mesh::{Status, service};
