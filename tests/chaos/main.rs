//! Chaos tests: something is killed, stopped or cut off under constant load, and every call is accounted for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

/// Instances stopped and killed.
mod instances;
/// The control plane down, and proxies restarted meanwhile.
mod control_plane;
/// Proxies drained and killed.
mod proxies;
/// Three replicas on three etcds, with all kinds of callers.
mod fixture;
/// Replicas of the control plane killed, restarted, cut off.
mod replicas;
/// etcd's leader killed, its quorum lost.
mod etcd;
