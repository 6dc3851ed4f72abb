//! The registry with several replicas, without its store, and over many cycles.

mod events;
mod expired;
mod garbage;
mod leaks;
mod outage;
mod replicas;
