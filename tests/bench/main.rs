//! Benchmarks: the cost of a call through Heddle compared with a raw TCP relay and stock Envoy, measured in the same
//! minutes on the same core, and the cost of an endpoint update in the control plane. Needs release binaries that were
//! built before; prints a table and writes JSON. Proxies run on core 0, load and backends on core 1. No code of a proxy
//! is linked here: each is measured as its own process.
//!
//!     cargo build --release && cargo run --release -p heddle-tests --bin bench -- compare
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a tool run by hand: it prints its findings and fails loudly"
)]

mod options;
mod call;
mod wire;
mod load;
mod backend;
mod relay;
mod peers;
mod rounds;
mod report;
mod instructions;
mod control;

use clap::Parser;

use options::{Bench, Command};

fn main() -> anyhow::Result<()> {
    match Bench::parse().command {
        Command::Backend => backend::serve(),
        Command::Relay { to } => relay::serve(&to),
        Command::Compare(options) => {
            rounds::pin_self()?;
            let measured = rounds::run(&options)?;
            report::table(&measured);
            report::json(&measured, options.json.as_deref())
        }
        Command::Instructions(options) => {
            rounds::pin_self()?;
            instructions::run(&options)
        }
        Command::Control(options) => {
            rounds::pin_self()?;
            control::run(&options)
        }
    }
}
