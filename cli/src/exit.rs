//! The exit codes of the commands that ask a running mesh, the same for all of them. Programs that are run by `heddle run`
//! have codes of their own.

use std::process::ExitCode;

/// How a command that asks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The answer is there, and it is yes.
    Yes = 0,
    /// The answer is no: refused, not found, not healthy.
    No = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A wait ran out.
    Late = 3,
    /// There is nobody to ask.
    Nobody = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// One line on standard error, and the code.
pub(crate) fn fail(why: impl std::fmt::Display, exit: Exit) -> ExitCode {
    heddle_options::complain(why);
    exit.into()
}

/// For the end of `--help`.
pub(crate) const HELP: &str = "Exit codes: 0 done; 1 the answer is no (refused, not found, not healthy); 2 usage; \
3 a wait ran out; 4 nobody to ask";
