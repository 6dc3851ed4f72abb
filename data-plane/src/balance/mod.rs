//! Chooses one endpoint for one attempt, the step between policy/ and upstream/. Takes a set of endpoints, their load
//! and a random number; gives an endpoint. No sockets, no clock (`now` is an argument) and no xDS types.

pub mod endpoints;
pub mod ewma;
pub mod passive;
pub mod pick;
pub mod slow_start;

#[cfg(test)]
mod fairness;

pub use endpoints::{Endpoint, EndpointSet, Health, Target};
