//! A process that ends a program if the process that started both is killed: `heddle` again, with the hidden
//! `--end-group-with-stdin`. Its standard input names the process group, and closes however its parent dies. Then it
//! ends the group, with SIGTERM first. A parent that has ended the group itself kills its watchdog.

use std::{
    ffi::OsString,
    io::{self, BufRead as _, Read as _},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// The hidden flag; always the first argument.
pub(crate) const FLAG: &str = "--end-group-with-stdin";
/// How often it checks whether the group has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The group to end, and the time between SIGTERM and SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WatchedGroup {
    pub(crate) group: Pid,
    pub(crate) grace: Duration,
}

impl WatchedGroup {
    /// The form for standard input.
    pub(crate) fn line(self) -> String {
        let Self { group, grace } = self;
        format!("{} {}\n", group.as_raw_nonzero(), grace.as_millis())
    }

    fn read(line: &str) -> Option<Self> {
        let (group, grace) = line.trim().split_once(' ')?;
        Some(Self {
            group: Pid::from_raw(group.parse().ok().filter(|group| *group > 1)?)?,
            grace: Duration::from_millis(grace.parse().ok()?),
        })
    }
}

/// Runs the watchdog if `args` ask for it. Returns its exit code, or `None` if they do not.
pub(crate) fn run(args: &[OsString]) -> Option<ExitCode> {
    if args.get(1).is_none_or(|arg| arg != FLAG) {
        return None;
    }
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    // Without a line the parent died before it had started a program.
    let watched = stdin
        .read_line(&mut line)
        .ok()
        .and_then(|_| WatchedGroup::read(&line));
    let mut ignored = [0; 64];
    while stdin.read(&mut ignored).is_ok_and(|read| read > 0) {}
    if let Some(WatchedGroup { group, grace }) = watched {
        end(group, grace);
    }
    Some(ExitCode::SUCCESS)
}

fn end(group: Pid, grace: Duration) {
    let until = Instant::now() + grace;
    let _ = kill_process_group(group, Signal::TERM);
    while test_kill_process_group(group).is_ok() {
        if Instant::now() >= until {
            let _ = kill_process_group(group, Signal::KILL);
            return;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_group_is_read_as_it_was_written() {
        let watched = WatchedGroup {
            group: Pid::from_raw(4711).unwrap(),
            grace: Duration::from_secs(10),
        };
        assert_eq!(WatchedGroup::read(&watched.line()), Some(watched));
        // A group is never read as "all processes" or "my own group".
        for wrong in ["", "x 1", "0 1", "1 1", "-5 1", "7", "7 x"] {
            assert_eq!(WatchedGroup::read(wrong), None, "{wrong}");
        }
    }
}
