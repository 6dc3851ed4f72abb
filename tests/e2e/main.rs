//! End-to-end tests of the real binaries as users see them. One module per behaviour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

/// A raw HTTP/2 service in the mesh, for tests of what exactly comes through.
mod raw_service;
/// Calls on one node and across two, by path and by authority, of all four kinds.
mod calls;
/// Endpoints are fetched at the first call and dropped when nobody calls.
mod on_demand;
/// The mesh as grpcurl sees it, with no proto file at hand.
mod grpcurl;
/// What the parties say to each other arrives as it was meant: resets, deadlines, cancels, metadata.
mod meaning;
/// Large messages, long streams, and streams that stall.
mod flow;
/// Services that are full, retire their connections, or are not there.
mod upstream;
/// What a proxy tells of itself on its admin port, and of the mesh by gRPC health.
mod admin;
/// Calls that cannot be routed or are not HTTP/2.
mod bad_calls;
/// Who gets the calls that name a proto service and no mesh service.
mod paths;
/// Registrations and services files with mistakes.
mod bad_registrations;
/// Processes that cannot start, or start alone.
mod bad_starts;
/// The command line: demo, run, status.
mod cli;
/// What has happened and why, by the status API and by `heddle events`.
mod events;
/// Who may reach the listeners, and how many at a time; the files that processes leave.
mod listeners;
/// Health checks as the whole mesh sees them, and how instances leave.
mod health;
/// Processes that are stopped before they are ready, and addresses of the other family.
mod odd_starts;
/// Every command and file that the documents show works as it stands there.
mod docs;
