//! Chooses one endpoint for one attempt: the room between policy/ and upstream/. A set of endpoints, their load
//! and a random number come in, an endpoint goes out. No sockets, no clock (`now` is given) and no xDS types
//! may come in.

pub mod endpoints;
pub mod ewma;
pub mod passive;
pub mod pick;
pub mod slow_start;

#[cfg(test)]
mod fairness;

pub use endpoints::{Endpoint, EndpointSet, Health, Target};
