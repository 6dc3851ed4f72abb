//! The data path through real sockets: workers in this process, backends on the `h2` crate and on tonic, clients
//! on the `h2` crate. Each test starts its own nodes and backends on free ports and awaits events, not time.

// Helpers of tests are tests: what they cannot do ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;
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
mod told;
mod upstream;
