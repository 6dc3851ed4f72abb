//! Has the kernel send SIGTERM to a program when the process that starts it dies. It covers what the watchdog cannot: that
//! both are killed. It reaches the program itself only, not its child processes, and not a program with more rights than
//! its user (set-user-ID, file capabilities), because the kernel forgets it when such a program is executed.
//!
//! # Safety
//! `pre_exec` runs code between fork and exec, where only async-signal-safe functions may be called, and nothing may be
//! allocated. The code here makes two system calls and builds an error from a number.

#![allow(unsafe_code)]

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal},
};
use tokio::process::Command;

/// The thread that spawns the command must live as long as this process: the kernel sends the signal when that thread
/// ends. `heddle run` has only one.
pub(super) fn ends_with_this_process(command: &mut Command) -> &mut Command {
    let parent = getpid();
    // SAFETY: see the module documentation.
    unsafe { command.pre_exec(move || in_child(parent)) }
}

fn in_child(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have died before it could be watched.
    match getppid() == Some(parent) {
        true => Ok(()),
        false => Err(Errno::SRCH.into()),
    }
}
