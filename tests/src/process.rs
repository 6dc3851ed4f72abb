//! Child processes that are killed by their id when dropped, however the test ends. Their output is kept and printed when
//! the test fails. Their ready line (`<name> ready: key value, key value`) is awaited and parsed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::wait::{TIMEOUT, seen, within};

/// One child process with its output so far.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<Output>>,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct Output {
    stdout: Vec<String>,
    stderr: Vec<String>,
    /// Both, in the order of arrival.
    all: Vec<String>,
    open: usize,
}

/// A parsed ready line: keys and values.
#[derive(Clone, Debug, Default)]
pub struct Ready(pub BTreeMap<String, String>);

impl Ready {
    /// Reads `<binary> ready: key value, key value`.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, pairs) = line.split_once(" ready: ")?;
        Some(Self(
            pairs
                .split(", ")
                .filter_map(|pair| pair.split_once(' '))
                .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
                .collect(),
        ))
    }

    /// The value of one key; several addresses of one listener stand joined with `+`, of which this gives the first.
    pub fn get(&self, key: &str) -> &str {
        let value = self
            .0
            .get(key)
            .unwrap_or_else(|| panic!("the ready line has no `{key}`: {:?}", self.0));
        value.split('+').next().unwrap_or(value)
    }
}

/// What to start, and with what around it.
pub struct Start {
    name: String,
    command: Command,
}

impl Start {
    /// `name` is for messages only.
    pub fn new(name: &str, program: &Path) -> Self {
        let mut command = Command::new(program);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("HEDDLE_")) {
            command.env_remove(key);
        }
        if let Ok(level) = std::env::var("TEST_LOG") {
            command.env("HEDDLE_LOG", level);
        }
        Self {
            name: name.to_owned(),
            command,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// The same command as an argument of another one, which must `exec` it (`ip netns exec`).
    pub fn behind(self, program: &Path, words: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(words).arg(self.command.get_program());
        command.args(self.command.get_args());
        for (key, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(folder) = self.command.get_current_dir() {
            command.current_dir(folder);
        }
        Self { command, ..self }
    }

    pub fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Starts it and begins to keep its output.
    pub fn spawn(mut self) -> Process {
        let child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.unwrap_or_else(|error| {
            let program = Path::new(self.command.get_program()).display();
            panic!("cannot start {program}: {error}; `./test` builds what is missing")
        });
        let output = Arc::new(Mutex::new(Output {
            open: 2,
            ..Output::default()
        }));
        keep(&output, child.stdout.take().expect("piped"), true);
        keep(&output, child.stderr.take().expect("piped"), false);
        Process {
            name: self.name,
            child,
            output,
            status: None,
        }
    }
}

fn keep(output: &Arc<Mutex<Output>>, stream: impl Read + Send + 'static, stdout: bool) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut output = output.lock().unwrap();
            output.all.push(text.clone());
            if stdout {
                output.stdout.push(text);
            } else {
                output.stderr.push(text);
            }
        }
        output.lock().unwrap().open -= 1;
    });
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its ready line; panics with all its output when it exits or stays silent.
    pub async fn ready(&mut self) -> Ready {
        let what = format!("{} prints its ready line", self.name);
        within(TIMEOUT, &what, async || {
            if let Some(ready) = self.stdout().iter().find_map(|line| Ready::parse(line)) {
                return Ok(ready);
            }
            if let Some(status) = self.exited() {
                panic!(
                    "{} exited with {status} instead of becoming ready:\n{}",
                    self.name,
                    self.output()
                );
            }
            Err(self.output())
        })
        .await
    }

    /// Its exit status, if it has exited; the end of its output may still have to be read.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .expect("the state of the child can be read");
        }
        self.status
    }

    /// Waits until it has exited.
    pub async fn exit_within(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("{} exits", self.name);
        let status = within(timeout, &what, async || {
            self.exited()
                .ok_or_else(|| format!("it runs; its output:\n{}", self.output()))
        })
        .await;
        // Its own output arrives soon, on a busy machine too; a grandchild may keep the pipes open indefinitely.
        for _ in 0..400 {
            if self.output.lock().unwrap().open == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        status
    }

    /// Waits until a line of standard output satisfies `find`.
    pub async fn line<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        within(TIMEOUT, what, async || {
            self.stdout()
                .iter()
                .find_map(|line| find(line))
                .ok_or_else(|| self.output())
        })
        .await
    }

    /// Waits until its output, either stream, has this text.
    pub async fn says(&mut self, text: &str) {
        let what = format!("{} says {text:?}", self.name);
        within(TIMEOUT, &what, async || {
            let output = self.output();
            seen(output.contains(text), output)
        })
        .await;
    }

    pub fn stdout(&self) -> Vec<String> {
        self.output.lock().unwrap().stdout.clone()
    }

    pub fn stderr(&self) -> Vec<String> {
        self.output.lock().unwrap().stderr.clone()
    }

    /// Both streams, in the order of arrival.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().all.join("\n")
    }

    /// Writes one line to its standard input.
    pub fn write_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is open");
        writeln!(stdin, "{line}").expect("the child reads its standard input");
        stdin.flush().expect("the child reads its standard input");
    }

    /// Sends a signal by name (`TERM`, `INT`, `STOP`, `CONT`, `KILL`).
    pub fn signal(&self, signal: &str) {
        if self.status.is_none() {
            crate::faults::signal(self.pid(), signal);
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exit_within(TIMEOUT).await
    }

    /// SIGTERM, and waits for the end; it must exit with 0.
    pub async fn stop_cleanly(&mut self) {
        self.signal("TERM");
        self.exit_cleanly().await;
    }

    /// Waits for the end; it must exit with 0.
    pub async fn exit_cleanly(&mut self) {
        let status = self.exit_within(TIMEOUT).await;
        assert!(
            status.success(),
            "{}: {status}\n{}",
            self.name,
            self.output()
        );
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.signal("KILL");
        self.exit_within(TIMEOUT).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let output = self
                .output
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let last = output.all.len().saturating_sub(60);
            eprintln!("---- {} ({}), its last lines:", self.name, self.child.id());
            for line in &output.all[last..] {
                eprintln!("{line}");
            }
        }
    }
}

/// Runs a program to its end.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Both streams, for messages.
    pub fn all(&self) -> String {
        format!("exit {:?}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs it and waits for its end, at most [`TIMEOUT`].
pub async fn run(start: Start) -> Ran {
    run_within(TIMEOUT, start).await
}

/// Runs it and waits for its end.
pub async fn run_within(timeout: Duration, start: Start) -> Ran {
    let mut process = start.spawn();
    drop(process.child.stdin.take());
    let status = process.exit_within(timeout).await;
    Ran {
        code: status.code(),
        stdout: process.stdout().join("\n"),
        stderr: process.stderr().join("\n"),
    }
}
