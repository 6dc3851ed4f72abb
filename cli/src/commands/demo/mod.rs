//! `heddle demo`: a whole mesh in one process tree. In comes a wish or two, out goes a running mesh with calls on it,
//! lines that say what to try, and, at the end, nothing: no process and no file. `plan` says which parts there are and
//! where, `child` runs one process and starts it again when it dies, `traffic` calls through every node, `report` has the
//! words. The parts are this same program started again; nothing of the planes runs in the demo's own process.

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

/// Ctrl-C, SIGTERM, or the terminal has gone.
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
