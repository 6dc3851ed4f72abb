//! `heddle`: one binary with every part of the mesh in it, and the commands that look at a running one. In comes a
//! command line, out goes an exit code: those of `exit` for commands that ask, 2 with one line for what could not be
//! started, or the code of the program that `heddle run` ran. What a part does is its own library's; here they are only started.

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
