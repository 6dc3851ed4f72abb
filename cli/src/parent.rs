//! For a process that must not outlive its parent. With the hidden `--exit-with-stdin` it stops as by SIGTERM when its
//! standard input closes, which happens however the parent dies. With `--exit-with-stdin=DIR` it then also removes the
//! parent's temporary folder.

use std::{
    ffi::OsString,
    io::{self, Read as _},
    path::PathBuf,
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};

/// The hidden flag; always the first argument.
pub(crate) const FLAG: &str = "--exit-with-stdin";
/// A part that has not drained within this time is ended: nobody waits for it any more.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(12);
/// The time for the other orphans to drain; until then they write into the folder.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(6);

/// What remains to be done when this process ends.
#[derive(Debug, Default)]
pub(crate) struct Parent {
    orphaned: Arc<AtomicBool>,
    leftover: Option<PathBuf>,
}

/// Removes the flag from `args`, if it is there, and watches standard input from then on.
pub(crate) fn watch(args: &mut Vec<OsString>) -> Parent {
    let Some(leftover) = args.get(1).and_then(flag) else {
        return Parent::default();
    };
    args.remove(1);
    let parent = Parent {
        orphaned: Arc::default(),
        leftover,
    };
    let orphaned = parent.orphaned.clone();
    let folder = parent.leftover.clone();
    thread::spawn(move || {
        let mut ignored = [0; 256];
        let mut stdin = io::stdin().lock();
        while stdin.read(&mut ignored).is_ok_and(|read| read > 0) {}
        orphaned.store(true, Ordering::Relaxed);
        if kill_process(getpid(), Signal::TERM).is_ok() {
            thread::sleep(DRAIN_TIMEOUT);
        }
        if let Some(folder) = folder {
            let _ = std::fs::remove_dir_all(folder);
        }
        exit(1);
    });
    parent
}

impl Parent {
    /// Call it last.
    pub(crate) fn done(self) {
        let Some(folder) = self.leftover else { return };
        if self.orphaned.load(Ordering::Relaxed) {
            thread::sleep(OTHERS_TIMEOUT);
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// The folder of the flag, if it has one; the outer `None`: `arg` is not the flag.
fn flag(arg: &OsString) -> Option<Option<PathBuf>> {
    let rest = arg.to_str()?.strip_prefix(FLAG)?;
    match rest.strip_prefix('=') {
        None if rest.is_empty() => Some(None),
        None => None,
        Some(folder) => Some(Some(PathBuf::from(folder))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::flag;

    #[test]
    fn only_the_flag_itself_is_taken() {
        for (arg, expect) in [
            ("--exit-with-stdin", Some(None)),
            (
                "--exit-with-stdin=/tmp/x",
                Some(Some(PathBuf::from("/tmp/x"))),
            ),
            ("--exit-with-stdins", None),
            ("proxy", None),
        ] {
            assert_eq!(flag(&arg.into()), expect, "{arg}");
        }
    }
}
