//! What this proxy shows of itself and of the mesh: metrics, readiness and configuration over HTTP; health and
//! reflection over gRPC, for the proxy on the admin port and for the whole mesh on outbound. Read only.

pub mod catalog;
pub mod config;
pub mod ending;
pub mod health;
pub mod http;
pub mod metrics;
pub mod reflection;
pub mod serve;

#[cfg(test)]
mod tests;
