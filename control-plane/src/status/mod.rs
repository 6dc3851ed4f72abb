//! Read-only answers for people and tools: what the mesh looks like and what each client was told. In come questions,
//! out go sorted lists without clocks. Nothing is changed and nothing is decided here.

mod events;
mod mesh;

pub use mesh::{Status, service};
