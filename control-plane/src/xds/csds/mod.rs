//! `envoy.service.status.v3.ClientStatusDiscoveryService`: what each client of this replica was sent, resource by
//! resource, and what it said about it. In come questions, with matchers of node ids; out go answers of bounded size.
//! Nothing is changed here, and no stream of a client waits for it longer than its list of names is copied.

mod asked;
mod holding;
mod parts;
mod service;

pub use service::{ClientConfigs, csds};

#[cfg(test)]
mod tests;
