//! The binary heddle-proxy. Everything is in the library, so that `heddle proxy` is the same.

fn main() -> std::process::ExitCode {
    heddle_proxy::run(std::env::args_os().collect())
}
