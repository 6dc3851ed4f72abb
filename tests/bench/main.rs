//! What a call costs through Heddle, beside a raw TCP relay and stock Envoy in the same minutes on the same core,
//! and what an endpoint update costs the control plane.
//! Release binaries that were built beforehand come in; a table and JSON go out. Proxies stand on core 0, load and
//! backends on core 1. Nothing of a proxy's own code may come in here: it is measured as the process that users run.
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
