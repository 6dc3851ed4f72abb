//! `heddle`: one binary with every part of the mesh, and the commands that query a running one. Input: a command line.
//! Output: an exit code: one of `exit` for a query, 2 with one line if something cannot be started, or the code of the
//! program that `heddle run` ran. The parts themselves are libraries; they are only started here.

use std::process::ExitCode;

mod parent;
mod watchdog;
mod exit;
mod client;
mod output;
mod commands;

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = watchdog::run(&args) {
        return code;
    }
    let parent = parent::watch(&mut args);
    let code = commands::dispatch(args);
    parent.done();
    code
}
