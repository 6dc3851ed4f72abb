//! The control plane of Heddle as a library. The modules are declared in the order of an endpoint update: a node's
//! session writes into the store, the registry folds the store's events into a view, the view becomes snapshots, and
//! snapshots are sent on xDS streams. After them come the read-only answers for people and tools, and the process
//! itself.

use std::{ffi::OsString, process::ExitCode};

pub mod names;
pub mod session;
pub mod store;
pub mod registry;
pub mod snapshot;
pub mod xds;
// ---- not on the path of an update ----
pub mod load;
pub mod replica;
pub mod status;
pub mod budget;
mod access;
pub mod grpc;
mod plane;
mod http;
// ---- the process ----
pub mod options;
pub use heddle_listen as listen;
pub mod app;
#[cfg(test)]
mod sim;

/// The program: `args[0]` is its name. Returns after it has stopped.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let options: options::Options = heddle_options::parse("HEDDLE_CONTROL", args);
    heddle_options::init_logging("info");
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return heddle_options::fail(format!("cannot start the runtime: {error}")),
    };
    let ended = runtime.block_on(async { app::serve(options, heddle_options::terminated()).await });
    // Dropping the runtime waits for the store: what was acknowledged is on disk before the process ends.
    drop(runtime);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => heddle_options::fail(error),
    }
}
