//! Interop with third-party programs. `grpc_cases` runs the gRPC project's own server in the mesh and calls it with the
//! project's clients; `proxyless` (grpcio, grpc-go, grpc-js) and `envoy` are stock xDS clients of the control plane;
//! `outage` stops the control plane; `removal` removes and adds instances.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod grpc_cases;
mod outage;
mod proxyless;
mod envoy;
mod removal;
