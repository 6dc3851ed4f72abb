//! (room being built)

pub mod hpack;
mod fields;

pub use fields::{Field, Fields};
