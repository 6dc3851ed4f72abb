//! Read-only answers for people and tools: what the mesh looks like and what each client was told. In come questions,
//! out go sorted lists without clocks; what only another replica knows is asked there. Nothing is changed and nothing is
//! decided here.

mod events;
mod mesh;
mod proxies;
mod verdict;
mod edges;
mod csds;

pub use csds::{Csds, csds};
pub use mesh::{Status, service};
