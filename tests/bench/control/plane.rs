//! The control plane under test: a release heddle-control on its own core, with either store, with figures from the
//! kernel and from its `/metrics`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use heddle_tests::process::Process;
use heddle_tests::{http_get, temp};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::peers::{PROXY_CORE, beside, pinned};
use crate::rounds::cpu_time;

/// The flow control windows of connections to it: large, so that waits for window updates are not measured.
const WINDOW: u32 = 4 << 20;

pub(super) struct Plane {
    pub(super) grpc: SocketAddr,
    http: SocketAddr,
    store: String,
    process: Process,
    _folder: TempDir,
}

impl Plane {
    /// `store` is the `--store` option of heddle-control; `None` means an embedded store in a new folder.
    pub(super) async fn start(store: Option<&str>) -> anyhow::Result<Self> {
        let folder = temp::folder();
        let store = store.map_or_else(
            || format!("embedded:{}", folder.path().join("store").display()),
            str::to_owned,
        );
        let (grpc, http) = (temp::free_addr(), temp::free_addr());
        Ok(Self {
            process: spawn(grpc, http, &store).await?,
            grpc,
            http,
            store,
            _folder: folder,
        })
    }

    /// Kills it and restarts it with the same store; returns when it is ready.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill().await;
        self.process = spawn(self.grpc, self.http, &self.store).await?;
        Ok(())
    }

    pub(super) fn channel(&self) -> anyhow::Result<Channel> {
        channel(self.grpc)
    }

    /// Processor time of all its threads.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_time(self.process.pid())
    }

    /// Resident memory in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid());
        let text = std::fs::read_to_string(&path).context(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = number.context("no VmRSS")?.parse()?;
        Ok(kib * 1024)
    }

    /// A counter of `/metrics`, summed over its labels.
    pub(super) async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let (status, text) = http_get::get(self.http, "/metrics")
            .await
            .map_err(anyhow::Error::msg)?;
        ensure!(status == 200, "/metrics answers {status}");
        let values = text
            .lines()
            .filter(|line| line.starts_with(name) && !line.starts_with('#'))
            .filter(|line| matches!(line.as_bytes().get(name.len()), Some(b' ' | b'{')))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(values.sum())
    }
}

pub(super) fn channel(address: SocketAddr) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    Ok(endpoint.connect_lazy())
}

async fn spawn(grpc: SocketAddr, http: SocketAddr, store: &str) -> anyhow::Result<Process> {
    let mut process = pinned("heddle-control", PROXY_CORE, &beside("heddle-control")?)
        .args(["--listen", &grpc.to_string()])
        .args(["--http", &http.to_string()])
        .args(["--store", store])
        .spawn();
    process.ready().await;
    Ok(process)
}
