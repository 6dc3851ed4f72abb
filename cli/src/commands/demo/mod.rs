//! `heddle demo`: a whole mesh in one process tree, with calls running through it. At the end no process and no file is
//! left. `plan` says which parts there are and where they listen, `child` runs one process, `supervise` restarts it
//! when it dies, `traffic` calls through every node, `report` prints. The parts are this same program started again;
//! the demo's own process runs no part of the mesh.

use std::{ffi::OsString, process::ExitCode};

mod plan;
mod child;
mod supervise;
mod traffic;
mod report;
mod lifecycle;

#[cfg(test)]
mod tests;

use plan::Options;

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_DEMO", args);
    heddle_options::init_logging("warn");
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(why) => return heddle_options::fail(format!("cannot start the runtime: {why}")),
    };
    match runtime.block_on(async { lifecycle::run_demo(&options, stopped()).await }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => heddle_options::fail(why),
    }
}

/// Ends at Ctrl-C, SIGTERM, or when the terminal closes.
fn stopped() -> impl Future<Output = ()> {
    let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let terminated = heddle_options::terminated();
    async move {
        let hung_up = async {
            match hangup {
                Ok(mut signal) => {
                    signal.recv().await;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = terminated => {}
            () = hung_up => {}
        }
    }
}
