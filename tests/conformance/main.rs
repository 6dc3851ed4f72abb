//! Conformance: what a specification or this house demands, checked against the real thing. `directions` holds the
//! crates to DESIGN §3.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod directions;
