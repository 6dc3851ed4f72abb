//! Interop: programs that nobody here wrote. `grpc_cases` puts the gRPC project's own server into the mesh and drives it
//! with the project's own clients; `proxyless` (grpcio, grpc-go, grpc-js) and `envoy` are stock xDS clients of the control
//! plane, `outage` takes it from them, and `removal` has all of them call instances that come and go.
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
