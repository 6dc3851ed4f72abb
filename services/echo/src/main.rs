//! The single binary: everything is in the library, which `heddle echo` runs as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle_echo::run(std::env::args_os().collect())
}
