//! The separate binary. Everything is in the library, which `heddle echo` runs too.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle_echo::run(std::env::args_os().collect())
}
