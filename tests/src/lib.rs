//! The harness of Heddle's tests: it starts the real binaries and the real peers on free ports, waits for them by
//! their own APIs, breaks them on purpose, keeps book of every call, and always stops what it started. Nothing is
//! mocked here, nothing is skipped, and no product code comes in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails loudly and at once"
)]

/// Free ports and temporary folders.
pub mod place;
/// Children that always die, with their output kept and their ready line read.
pub mod process;
/// The pinned peers, found or a loud failure.
pub mod tools;
/// Awaiting a state, with the last one seen printed when time is up.
pub mod until;
/// etcd, single or a cluster, for the control plane to keep the mesh in.
pub mod etcd;
/// Control plane, nodes and instances: what every end-to-end test builds first.
pub mod mesh;
/// The replicas of its control plane.
pub mod replicas;
/// Several hosts on one machine, plugged in and unplugged.
pub mod netns;
/// One address for several replicas.
pub mod front;
/// Stock gRPC clients that find their service by xDS.
pub mod stock;
/// Stock Envoy as an xDS client.
pub mod envoy;
/// Calls of the echo service, and what a failed one carries.
pub mod echo;
/// HTTP/2 by hand, for what a gRPC library hides.
pub mod raw;
/// A page of an HTTP port.
pub mod page;
/// Who is connected to whom, from the kernel's own tables.
pub mod sockets;
/// Steady load with a book in which every call stands once.
pub mod ledger;
/// Kill, stop, freeze, cut.
pub mod faults;
