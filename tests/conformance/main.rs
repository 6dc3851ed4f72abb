//! Conformance: what a specification or this house demands, checked against the real thing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

/// Who may depend on whom (DESIGN §3).
mod directions;
/// Which module of a crate may use which.
mod modules;
/// Every room has its sign.
mod signs;
/// h2spec against both listeners of a proxy.
mod h2spec;
