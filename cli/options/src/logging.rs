//! Logging with tracing to stderr, filtered by `--log`; stdout is reserved for the ready line and for answers.

use std::{
    io::{self, IsTerminal as _},
    sync::OnceLock,
};

use tracing_subscriber::EnvFilter;

/// The filter that the options (`--log`, its variable or the file) set.
pub(crate) static CHOSEN: OnceLock<String> = OnceLock::new();

/// Starts logging to stderr with the filter of `--log`, else of `HEDDLE_LOG`, else `default` ("info",
/// "warn,heddle_proxy=debug"). A second call changes nothing.
pub fn init_logging(default: &str) {
    let wanted = CHOSEN
        .get()
        .cloned()
        .or_else(|| std::env::var("HEDDLE_LOG").ok());
    let filter = wanted
        .filter(|text| !text.is_empty())
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // If the reader of stderr is gone, reporting the failed write with eprintln would panic and end the process.
        .log_internal_errors(false)
        .try_init();
}

/// Returns the text if it is a valid filter.
pub(crate) fn check_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|why| {
            format!(
                "{why}; use a level (error, warn, info, debug, trace) or target=level, separated \
                 by commas"
            )
        })
}
