//! End-to-end tests of the real binaries as users see them. One module per behaviour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

/// Attempts to loop calls through proxies and to take over a node.
mod attacks;
/// A raw HTTP/2 service in the mesh, for tests of what exactly is forwarded.
mod raw_service;
/// Calls on one node and across two, by path and by authority, of all four kinds.
mod calls;
/// Endpoints are fetched at the first call and dropped after a time without calls.
mod on_demand;
/// grpcurl without a proto file.
mod grpcurl;
/// Resets, deadlines, cancels and metadata keep their meaning.
mod meaning;
/// Large messages, long streams, and streams that stall.
mod flow;
/// Services that are full, retire their connections, or are down.
mod upstream;
/// The admin port of a proxy, and gRPC health on outbound.
mod admin;
/// Calls that cannot be routed or are not HTTP/2.
mod bad_calls;
/// Path ownership.
mod paths;
/// Registrations and services files with errors.
mod bad_registrations;
/// Processes that cannot start, or start without others.
mod bad_starts;
/// The command line: run, status.
mod cli;
/// The demo.
mod demo;
/// The exit codes of the command line.
mod exit_codes;
/// Events, by the status API and by `heddle events`.
mod events;
/// Who can reach the listeners, connection limits, file permissions.
mod listeners;
/// Health checks, and how instances leave.
mod health;
/// SIGTERM to instances and proxies: calls in flight, events, status.
mod stopping;
/// Processes that are stopped before they are ready, and addresses of another family.
mod odd_starts;
/// Every command and file of the documents works.
mod docs;
