//! The exit codes of the commands that query a running mesh, the same for all. Programs that `heddle run` runs have
//! their own exit codes.

use std::process::ExitCode;

/// How a query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The answer is yes, or the data was shown.
    Yes = 0,
    /// The answer is no: refused, not found, not healthy.
    No = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A wait timed out.
    Late = 3,
    /// Nobody answers.
    Unreachable = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Prints one line on standard error. Returns the code.
pub(crate) fn fail(why: impl std::fmt::Display, exit: Exit) -> ExitCode {
    heddle_options::print_error(why);
    exit.into()
}

/// For the end of `--help`.
pub(crate) const HELP: &str = "Exit codes: 0 success; 1 negative answer (refused, not found, \
    verdict FAILING); 2 usage error; 3 timeout; 4 no control plane reachable";
