//! `heddle run`: any program joins the mesh without a change to its code. Input: a command line. Output: the program's
//! exit code. `options` has what the user typed and what is registered, `program` one run of the command,
//! `death_signal` what ends it if this process is killed, `lifecycle` the sequence from start to drain, `schema_hint` a
//! warning about what the mesh could not learn of it, `sources` the proto services that may be meant. The program's
//! protocol is not inspected here: the node's agent checks it.

use std::{ffi::OsString, process::ExitCode};

mod options;
mod program;
#[cfg(target_os = "linux")]
mod death_signal;
mod lifecycle;
mod sources;
mod schema_hint;

#[cfg(test)]
mod tests;

pub(crate) use options::Options;

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_RUN", args);
    heddle_options::init_logging("info");
    let plan = match options.plan() {
        Ok(plan) => plan,
        Err(why) => return heddle_options::fail(why),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(why) => return heddle_options::fail(format!("cannot start the runtime: {why}")),
    };
    match runtime
        .block_on(async { lifecycle::run_program(&plan, heddle_options::terminated()).await })
    {
        Ok(code) => ExitCode::from(code),
        Err(why) => heddle_options::fail(why),
    }
}
