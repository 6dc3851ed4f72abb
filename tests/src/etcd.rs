//! A real etcd for one test: a single member or a cluster, each member in its own process on free ports with its data in a
//! temporary folder. Members are killed, frozen and restarted by their number, from 0, and keep their addresses and data.
//!
//! ```no_run
//! # async fn test() {
//! let mut etcd = heddle_tests::etcd::Etcd::cluster().await; // three members, one of them the leader
//! let store = etcd.store();                                 // for `heddle-control --store`
//! let leader = etcd.leader().await;
//! etcd.kill(leader).await;
//! etcd.leader().await;                                      // another one
//! etcd.restart(leader).await;
//! # }
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::http_get;
use crate::process::{Process, Start, run};
use crate::temp::{folder, free_port};
use crate::tools::go_peer;
use crate::wait::{seen, until};

/// What to start.
pub struct Builder {
    members: usize,
    host: IpAddr,
    program: PathBuf,
    args: Vec<String>,
    tls: Option<Tls>,
}

/// The files that etcd serves TLS with, and those that etcdctl shows it.
#[derive(Clone)]
pub struct Tls {
    pub ca: PathBuf,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
}

impl Builder {
    pub fn members(mut self, count: usize) -> Self {
        self.members = count;
        self
    }

    /// The address that all members listen on; loopback unless given. Ports are tried on loopback.
    pub fn host(mut self, host: IpAddr) -> Self {
        self.host = host;
        self
    }

    /// Another etcd than the pinned one of [`go_peer`].
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// A further argument for every member.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Clients must speak TLS and show a certificate.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts all members and returns when each answers and they have a leader.
    pub async fn start(self) -> Etcd {
        let folder = folder();
        let members = (0..self.members).map(|n| Member {
            client: SocketAddr::new(self.host, free_port()),
            peer: SocketAddr::new(self.host, free_port()),
            metrics: SocketAddr::new(self.host, free_port()),
            data: folder.path().join(n.to_string()),
            process: None,
        });
        let mut etcd = Etcd {
            members: members.collect(),
            program: self.program,
            args: self.args,
            tls: self.tls,
            _folder: folder,
        };
        for member in 0..self.members {
            etcd.spawn(member);
        }
        for member in 0..self.members {
            etcd.healthy(member).await;
        }
        etcd
    }
}

struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    /// Its health, without TLS.
    metrics: SocketAddr,
    data: PathBuf,
    process: Option<Process>,
}

/// A running etcd; it ends with this value.
pub struct Etcd {
    members: Vec<Member>,
    program: PathBuf,
    args: Vec<String>,
    tls: Option<Tls>,
    _folder: TempDir,
}

impl Etcd {
    pub fn builder() -> Builder {
        Builder {
            members: 1,
            host: Ipv4Addr::LOCALHOST.into(),
            program: go_peer("etcd"),
            args: Vec::new(),
            tls: None,
        }
    }

    /// One member.
    pub async fn single() -> Self {
        Self::builder().start().await
    }

    /// A cluster of three.
    pub async fn cluster() -> Self {
        Self::builder().members(3).start().await
    }

    /// What `heddle-control --store` is given.
    pub fn store(&self) -> String {
        format!("etcd:{}", self.urls().join(","))
    }

    /// Where clients find the members, in their order.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = |member: &Member| format!("{scheme}://{}", member.client);
        self.members.iter().map(url).collect()
    }

    /// Where clients find one member.
    pub fn client_addr(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// The process of a member that runs.
    pub fn process(&mut self, member: usize) -> &mut Process {
        let process = self.members[member].process.as_mut();
        process.unwrap_or_else(|| panic!("etcd member {member} does not run"))
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill().await;
        }
    }

    /// Kills the leader and one more member, and returns both: the remaining member knows at once that it has no leader. (A
    /// leader that is left alone answers keep-alives for another election timeout.)
    pub async fn lose_quorum(&mut self) -> [usize; 2] {
        let leader = self.leader().await;
        let other = (leader + 1) % self.members.len();
        self.kill(leader).await;
        self.kill(other).await;
        [leader, other]
    }

    /// Starts the two again that [`Self::lose_quorum`] killed.
    pub async fn regain_quorum(&mut self, lost: [usize; 2]) {
        self.spawn(lost[0]);
        self.restart(lost[1]).await;
    }

    /// SIGTERM, and waits for the end: a leader hands over first.
    pub async fn stop(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.stop().await;
        }
    }

    /// SIGSTOP: it keeps its connections and answers nothing, as a member behind a cut does.
    pub fn freeze(&mut self, member: usize) {
        self.process(member).signal("STOP");
    }

    /// SIGCONT.
    pub fn thaw(&mut self, member: usize) {
        self.process(member).signal("CONT");
    }

    /// Starts a member that was killed or stopped, and waits until it answers: there must be a quorum with it.
    pub async fn restart(&mut self, member: usize) {
        self.spawn(member);
        self.healthy(member).await;
    }

    /// Starts a member that was killed or stopped, and does not wait: `healthy` does.
    pub fn spawn(&mut self, member: usize) {
        let cluster: Vec<String> = (0..self.members.len())
            .map(|n| format!("m{n}=http://{}", self.members[n].peer))
            .collect();
        let Member {
            client,
            peer,
            metrics,
            data,
            ..
        } = &self.members[member];
        let client = match self.tls {
            Some(_) => format!("https://{client}"),
            None => format!("http://{client}"),
        };
        let mut start = Start::new(&format!("etcd {member}"), &self.program)
            .args(["--name", &format!("m{member}")])
            .args(["--data-dir".as_ref(), data.as_os_str()])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--listen-metrics-urls", &format!("http://{metrics}")])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--logger", "zap", "--log-level", "error"])
            .args(&self.args);
        if let Some(tls) = &self.tls {
            start = start
                .args(["--cert-file".as_ref(), tls.server_cert.as_os_str()])
                .args(["--key-file".as_ref(), tls.server_key.as_os_str()])
                .args(["--trusted-ca-file".as_ref(), tls.ca.as_os_str()])
                .arg("--client-cert-auth");
        }
        self.members[member].process = Some(start.spawn());
    }

    /// Waits until a member says that it is healthy: it answers and has a leader.
    pub async fn healthy(&mut self, member: usize) {
        let addr = self.members[member].metrics;
        let what = format!("etcd member {member} is healthy");
        until(&what, async || {
            if let Some(status) = self.process(member).exited() {
                let output = self.process(member).output();
                panic!("etcd member {member} exited with {status}:\n{output}");
            }
            let (status, body) = http_get::get(addr, "/health").await?;
            seen(status == 200, body)
        })
        .await;
    }

    /// Waits until the members that run agree on a leader, and says which it is.
    pub async fn leader(&self) -> usize {
        until("etcd has a leader", async || {
            let mut leading = Vec::new();
            for (n, member) in self.members.iter().enumerate() {
                if member.process.is_none() {
                    continue;
                }
                let (_, body) = http_get::get(member.metrics, "/metrics").await?;
                if body.lines().any(|line| line == "etcd_server_is_leader 1") {
                    leading.push(n);
                }
            }
            match leading[..] {
                [leader] => Ok(leader),
                _ => Err(format!("leaders: {leading:?}")),
            }
        })
        .await
    }

    /// Runs etcdctl against all members; what it prints, and a panic if it fails.
    pub async fn ctl(&self, args: &[&str]) -> String {
        let mut start = Start::new("etcdctl", &go_peer("etcdctl"))
            .args(["--endpoints", &self.urls().join(",")])
            // Of its own it gives up after seconds, which a busy machine may need.
            .args(["--dial-timeout=20s", "--command-timeout=20s"])
            .args(args);
        if let Some(tls) = &self.tls {
            start = start
                .args(["--cacert".as_ref(), tls.ca.as_os_str()])
                .args(["--cert".as_ref(), tls.client_cert.as_os_str()])
                .args(["--key".as_ref(), tls.client_key.as_os_str()]);
        }
        let ran = run(start).await;
        assert!(ran.code == Some(0), "etcdctl {args:?}: {}", ran.all());
        ran.stdout
    }

    /// How many leases live.
    pub async fn leases(&self) -> usize {
        let text = self.ctl(&["lease", "list", "-w", "json"]).await;
        let list: Value = serde_json::from_str(&text).expect("JSON of etcdctl");
        list["leases"].as_array().map_or(0, Vec::len)
    }

    /// How many keys there are, under any prefix.
    pub async fn keys(&self) -> usize {
        let text = self
            .ctl(&["get", "", "--prefix", "--keys-only", "-w", "json"])
            .await;
        let list: Value = serde_json::from_str(&text).expect("JSON of etcdctl");
        list["kvs"].as_array().map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_survives_its_leader() {
        let mut etcd = Etcd::cluster().await;
        etcd.ctl(&["put", "a", "1"]).await;
        let leader = etcd.leader().await;
        etcd.kill(leader).await;
        let next = etcd.leader().await;
        assert_ne!(next, leader);
        etcd.freeze(next);
        etcd.thaw(next);
        etcd.restart(leader).await;
        assert_eq!(etcd.ctl(&["get", "a", "--print-value-only"]).await, "1");
        assert_eq!((etcd.keys().await, etcd.leases().await), (1, 0));
    }
}
