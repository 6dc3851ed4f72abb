//! Chaos: something is killed, stopped or cut off under steady load, and the ledger is read afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

/// Streams that are open when it happens.
mod open;
/// Instances that stop and instances that die.
mod instances;
/// The control plane away, and proxies restarted without it.
mod control_plane;
/// Proxies that drain and proxies that die.
mod proxies;
/// Three replicas on three etcds, with everybody who calls.
mod scene;
/// Replicas of the control plane killed, restarted, cut off.
mod replicas;
/// etcd's leader killed, its quorum lost.
mod etcd;
