//! `heddle run`: any program joins the mesh with no line of code. In comes a command line, out goes the program's exit
//! code. `options` is what the user typed and what is registered, `program` one run of the command, `lifecycle` from start
//! to drain, `schema_hint` what the mesh could not learn of it, `sources` which proto services may be meant. The program's own
//! protocol is not looked into: the node's agent checks it.

use std::{ffi::OsString, process::ExitCode};

mod options;
mod program;
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
