//! The control plane's store on real etcds: the conformance suite of all engines, and what readers, writers, leases and
//! watches see while members are killed, frozen and cut off. The engine runs in the test; etcd in its own processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

// The names that the suite uses.
use heddle_control::store::{
    Changes, Compare, Event, KeyValue, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision,
    Store, StoreError, Txn, Watch,
};

#[path = "../../control-plane/src/store/conformance/mod.rs"]
mod conformance;
mod faults;
mod engines;
mod starting;
