//! What a parent sees of a process: the ready line, the signals that end it, and the one line with which it fails.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Prints the one line on stdout that says what is ready and where. A closed stdout is no failure: the process may have
/// been piped into a program that has ended.
pub fn ready(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Ends at SIGTERM or SIGINT. From this call on (not from the first poll) neither signal ends the process by itself, so
/// that one sent right after the ready line is not missed. Call it inside a tokio runtime.
pub fn terminated() -> impl Future<Output = ()> + Send + 'static {
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            // The signals then keep their default: they end the process without a drain.
            tracing::warn!(
                "cannot listen for SIGTERM and SIGINT: this process will stop without draining"
            );
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Ends when a stopping process gets a second signal, which means: at once. Launchers may signal a process and then its
/// group, so a signal within the first second counts as the first one.
pub async fn terminated_again() {
    tokio::time::sleep(Duration::from_secs(1)).await;
    terminated().await;
}

/// Raises the limit of open files to the system's maximum and returns it; otherwise listeners would run out of file
/// descriptors long before their own limits. `None`: unlimited.
pub fn raise_file_limit() -> Option<u64> {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    }
}

/// Prints "error: …" on stderr, in one line.
pub fn print_error(message: impl Display) {
    let _ = writeln!(
        io::stderr().lock(),
        "error: {}",
        one_line(&message.to_string())
    );
}

/// [`print_error`], and the exit code of a failed start (2).
pub fn fail(message: impl Display) -> ExitCode {
    print_error(message);
    ExitCode::from(2)
}

/// The text with its lines joined by "; ", without indentation or empty lines.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut joined = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match joined.chars().last() {
            None => {}
            Some(':' | ',') => joined.push(' '),
            Some(_) => joined.push_str("; "),
        }
        joined.push_str(line);
    }
    joined
}
