//! Conformance with specifications, and with the rules of this repository for its own sources.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

/// Allowed dependencies between crates (docs/architecture.md).
mod directions;
/// Allowed dependencies between modules of a crate.
mod modules;
/// Every module has module docs.
mod module_docs;
/// The Connect project's gRPC conformance suite through an outbound listener.
mod connect;
/// h2spec against both listeners of a proxy.
mod h2spec;
