//! The data path over real sockets: workers in this process, backends on the `h2` crate and on tonic, clients on the
//! `h2` crate. Each test starts its own nodes and backends on free ports and waits for events, not for time.

// Helpers may panic: that fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixture;
mod wire;

mod deadlines;
mod drain;
mod failures;
mod flow;
mod link_faults;
mod links;
mod listeners;
mod meaning;
mod on_demand;
mod order;
mod passive_health;
mod redials;
mod relay;
mod retries;
mod shares_output;
mod shares_streams;
mod slow;
mod steady;
mod reporting;
mod upstream;
