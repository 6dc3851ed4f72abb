//! heddle-control as a child of this process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

pub(crate) fn command(store: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heddle-control"));
    if !options.contains(&"--store") {
        command.args(["--store", &format!("embedded:{}", store.display())]);
    }
    command
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A heddle-control that is killed when the test ends, whether it passes or fails.
pub(crate) struct Control {
    pub(crate) child: Child,
    pub(crate) ready: String,
    _stdout: BufReader<ChildStdout>,
}

impl Control {
    pub(crate) fn start(store: &Path, options: &[&str]) -> Self {
        let mut child = command(store, options)
            // Nobody reads its log here, and a full pipe would block it.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        assert!(ready.starts_with("heddle-control ready: "), "{ready:?}");
        Self {
            child,
            ready: ready.trim().to_owned(),
            _stdout: stdout,
        }
    }

    /// The value of one key of the ready line.
    pub(crate) fn value(&self, key: &str) -> &str {
        let (_, pairs) = self.ready.split_once(": ").unwrap();
        let mut pairs = pairs.split(", ").filter_map(|pair| pair.split_once(' '));
        pairs.find(|(found, _)| *found == key).unwrap().1
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.value("http")).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap().code()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
