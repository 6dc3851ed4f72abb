//! The test harness: starts the real binaries and the real peers on free ports, waits for states through their own APIs,
//! injects faults, records every call, and always stops what it started. Nothing is mocked or skipped here, and no
//! product code comes in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails loudly and at once"
)]

/// Free ports and temporary folders.
pub mod temp;
/// Child processes that are always killed, with their output and ready line.
pub mod process;
/// Paths of binaries and pinned peers; a missing one is a failure.
pub mod tools;
/// Waits for a state; prints the last one seen on timeout.
pub mod wait;
/// etcd, single or a cluster, for the control plane to keep the mesh in.
pub mod etcd;
/// Control plane, nodes and instances: what every end-to-end test builds first.
pub mod mesh;
/// The replicas of its control plane.
pub mod replicas;
/// Several hosts on one machine, as network namespaces that can be unplugged.
pub mod netns;
/// A TCP load balancer in front of several replicas.
pub mod load_balancer;
/// Stock gRPC clients that find their service by xDS.
pub mod stock;
/// Stock Envoy as an xDS client.
pub mod envoy;
/// Calls of the echo service, and what a failed one carries.
pub mod echo;
/// HTTP/2 by hand, for what a gRPC library hides.
pub mod raw;
/// One GET over HTTP/1.1.
pub mod http_get;
/// Who is connected to whom, from the kernel's own tables.
pub mod sockets;
/// Streams that are open during a fault.
pub mod open_stream;
/// Constant load, with a log of every call.
pub mod load;
/// Kill, stop, freeze, cut.
pub mod faults;
