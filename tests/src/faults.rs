//! Faults for a running mesh: signals to a process, and a TCP forwarder that can be cut and healed. Only child processes of
//! the test are signalled, by their id.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::TIMEOUT;

/// Sends a signal by name to one process. After `STOP` it has stopped: the signal goes to one of its threads, and on a busy
/// machine others may run on until that one has its turn.
pub fn signal(pid: u32, signal: &str) {
    // The shell's own `kill`: always there, and no unsafe call in the harness.
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {pid}")])
        .status()
        .expect("sh runs");
    assert!(status.success(), "kill -{signal} {pid} failed");
    if signal == "STOP" {
        let end = Instant::now() + TIMEOUT;
        while !has_stopped(pid) {
            assert!(Instant::now() < end, "process {pid} does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether no thread of it runs. One that ends meanwhile runs no more.
fn has_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let mut stats = threads.flatten().map(|thread| thread.path().join("stat"));
    stats.all(|stat| {
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        // The state comes after the name, which stands in brackets and may hold anything.
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        state.is_empty() || state.starts_with(['T', 'Z', 'X'])
    })
}

/// Passes TCP connections on to `target` until it is cut; then refuses new ones and breaks those that are open.
pub struct Forwarder {
    pub addr: SocketAddr,
    target: SocketAddr,
    /// Of the connections since it was healed last.
    open: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Listens on a free loopback port.
    pub async fn to(target: SocketAddr) -> Self {
        let mut forwarder = Self {
            addr: crate::temp::free_addr(),
            target,
            open: watch::Sender::new(false),
            task: None,
        };
        forwarder.heal().await;
        forwarder
    }

    /// Breaks every connection and refuses new ones.
    pub async fn cut(&mut self) {
        self.open.send_replace(false);
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Passes connections on again, at the same address.
    pub async fn heal(&mut self) {
        if self.task.is_some() {
            return;
        }
        let listener = TcpListener::bind(self.addr).await.expect("a free port");
        // Another one each time: a connection that has not been looked at since the cut must not live on.
        let (open, up) = watch::channel(true);
        self.open = open;
        let target = self.target;
        self.task = Some(tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let up = up.clone();
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(target).await {
                        relay(near, far, up).await;
                    }
                });
            }
        }));
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Passes bytes both ways until either side ends or `up` turns false.
pub(crate) async fn relay(mut near: TcpStream, mut far: TcpStream, mut up: watch::Receiver<bool>) {
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = up.wait_for(|up| !up) => {}
    }
}
