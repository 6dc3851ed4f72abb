//! REST from descriptors: which method a path names, its request from path, query and JSON, its response as JSON. Takes
//! bytes and descriptors; gives bytes, or a fault that names the field. No sockets, no clock, no HTTP library, so that
//! everything here can be fuzzed and compared with other implementations.

#[allow(dead_code, reason = "the JSON reader, which comes next, uses the rest")]
mod fault;
pub mod http_rule;
pub mod json_write;
pub mod path_template;
#[allow(dead_code, reason = "as above")]
pub mod plan;
#[allow(dead_code, reason = "as above")]
mod wire;

#[cfg(test)]
mod fixture;

pub use fault::{Fault, FaultKind, FieldPath};
