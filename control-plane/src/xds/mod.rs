//! The aggregated discovery service: each connected client, in either variant of the protocol, is told what it asked
//! for and does not have yet. In come snapshots and requests, out go responses whose resources were encoded once for
//! all. `subscription`, `sotw`, `delta` and `session` are pure; `stream` and `service` are the shells around them.

mod lens;
mod node;
mod subscription;
mod sotw;
mod delta;
mod session;
mod wire;
mod clients;
mod metrics;
mod limits;
mod gate;
mod pace;
mod shed;
mod elsewhere;
mod stream;
mod service;
pub(crate) mod csds;

pub use clients::{Client, ClientStatus, Clients, KindStatus, RefusedStatus};
pub use lens::{LARGE, Lens};
pub use limits::{Limits, Refusal};
pub use metrics::Metrics;
pub use node::{NodeError, NodeInfo, OUTBOUND_KEY};
pub use service::{Ads, DESCRIPTOR_SET, service, service_within};
pub use session::{Heard, Session, Variant};
pub use subscription::{
    Hold, MAX_NAME_BYTES, MAX_NAMES, Subscription, Violation, max_response_bytes,
};
pub use {delta::Delta, sotw::Sotw};

#[cfg(test)]
mod tests;
