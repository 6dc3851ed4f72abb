//! The aggregated discovery service in both variants of the protocol: each client is sent what it subscribed to and
//! does not have yet. Resources are encoded once for all clients. `subscription`, `sotw`, `delta` and `client_state`
//! are pure; `stream` and `service` do the I/O.

mod client_view;
mod node;
mod subscription;
mod sotw;
mod delta;
mod client_state;
mod wire;
mod clients;
mod metrics;
mod limits;
mod admission;
mod pacing;
mod shed;
mod stream_end;
mod stream;
mod schema;
mod service;
pub(crate) mod csds;

pub use client_state::{ClientState, RequestOutcome, Variant};
pub use client_view::{ClientView, LARGE};
pub use clients::{Client, ClientStatus, Clients, KindStatus, RefusedStatus};
pub use limits::{Limits, Refusal};
pub use metrics::Metrics;
pub use node::{NodeError, NodeInfo, OUTBOUND_KEY};
pub use service::{Ads, DESCRIPTOR_SET, service, service_within};
pub use subscription::{
    DeferredRemovals, MAX_NAME_BYTES, MAX_NAMES, Subscription, Violation, max_response_bytes,
};
pub use {delta::Delta, sotw::Sotw};

#[cfg(test)]
mod tests;
