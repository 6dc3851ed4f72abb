//! One process of the demo from start to exit. It has its own process group (Ctrl-C is for the demo), a pipe as
//! standard input that closes when the demo dies, and its last lines of output are kept.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};

use crate::parent;

/// How many lines of a part that died are shown.
const KEPT_LINES: usize = 12;
/// Longer lines are split; those of the parts are short.
const LINE_BYTES: u64 = 4096;

pub(super) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    kept: VecDeque<String>,
    /// Kept open for as long as the part may live.
    _stdin: Option<ChildStdin>,
}

impl Process {
    pub(super) fn start(
        program: &Path,
        words: &[String],
        leftover: Option<&Path>,
    ) -> io::Result<Self> {
        let mut guard = OsString::from(parent::FLAG);
        if let Some(folder) = leftover {
            guard.push("=");
            guard.push(folder);
        }
        let mut command = Command::new(program);
        command.arg(guard).args(words);
        // The demo sets everything by flags; variables that the user has set for a single proxy would affect every
        // part.
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("HEDDLE_") && name != "HEDDLE_LOG")
            {
                command.env_remove(name);
            }
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (sender, lines) = mpsc::channel(64);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(pass_on(stdout, sender.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(pass_on(stderr, sender));
        }
        let stdin = child.stdin.take();
        Ok(Self {
            child,
            lines,
            kept: VecDeque::new(),
            _stdin: stdin,
        })
    }

    /// The next line of its output; `None` at the end of the output.
    pub(super) async fn line(&mut self) -> Option<String> {
        let line = self.lines.recv().await?;
        if self.kept.len() == KEPT_LINES {
            self.kept.pop_front();
        }
        self.kept.push_back(line.clone());
        Some(line)
    }

    /// Waits for its end; call it after the end of its output.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    pub(super) fn last_lines(self) -> Vec<String> {
        self.kept.into()
    }

    /// Sends SIGTERM, and SIGKILL after `grace` or when `hurry` ends. True if it ended by itself.
    pub(super) async fn stop(mut self, grace: Duration, hurry: impl Future<Output = ()>) -> bool {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let quiet = async {
            // Reads on, because a full pipe would keep it from ending.
            while self.lines.recv().await.is_some() {}
            self.child.wait().await
        };
        let ended = tokio::select! {
            ended = timeout(grace, quiet) => ended.is_ok(),
            () = hurry => false,
        };
        if !ended {
            let _ = self.child.kill().await;
        }
        ended
    }
}

async fn pass_on(from: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut from)
            .take(LINE_BYTES)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() && to.send(text).await.is_err() {
            return;
        }
    }
}
