//! The control plane as a separate program; `heddle control` is the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle_control::run(std::env::args_os().collect())
}
