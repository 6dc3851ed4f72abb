//! Notices that the program of an instance was restarted at its address although no connection broke and no check
//! failed: another socket listens there. Then the instance is queried by reflection again. Input: the instances and the
//! listening sockets of this host, which only Linux shows. Nothing is concluded while no socket is found: the address may
//! be one of another network namespace. Health is not decided here.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use heddle_proto::registry::v1::Protocol;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{
    Agent,
    listening::{Inodes, Listening},
};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// The least time between two looks, however often instances are added.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// The files of the kernel, each with the listening sockets first.
const FILES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// Read at once. Small, because the kernel makes the text while it is read, and what follows the listening sockets is
/// not wanted.
const BUFFER: usize = 1024;
/// The most that is read of a file: some 100,000 sockets.
const MAX_BYTES: u64 = 16 << 20;

/// An instance whose reflection is queried.
type Reflecting = (Arc<str>, SocketAddr);

/// Looks at the sockets as long as the process runs, in one task.
pub async fn watch(agent: Agent) {
    let mut changes = agent.changes();
    let mut watcher = Watcher::new(agent);
    loop {
        watcher.look().await;
        sleep(LEAST_PAUSE).await;
        let _ = timeout(INTERVAL, watcher.added(&mut changes)).await;
    }
}

/// What the looks have in common.
pub(super) struct Watcher {
    agent: Agent,
    known: Known,
}

impl Watcher {
    pub(super) fn new(agent: Agent) -> Self {
        Self {
            agent,
            known: Known::default(),
        }
    }

    /// Looks once at the sockets of all instances.
    pub(super) async fn look(&mut self) {
        let instances = reflecting(&self.agent);
        let ports: Vec<u16> = instances.iter().map(|(_, at)| at.port()).collect();
        if ports.is_empty() {
            return;
        }
        let sockets = match tokio::task::spawn_blocking(move || read(ports)).await {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(error)) => return debug!("the listening sockets cannot be read: {error}"),
            Err(error) => return debug!("the listening sockets were not read: {error}"),
        };
        for (registration, address) in self.known.restarted(&instances, &sockets) {
            info!(%address, "the program of an instance was restarted: its reflection is queried again");
            self.agent.reflect_again(&registration);
        }
    }

    /// Returns once there is an instance that has not been looked at.
    async fn added(&self, changes: &mut watch::Receiver<u64>) {
        loop {
            changes.borrow_and_update();
            let now = reflecting(&self.agent);
            let is_new = |(registration, _): &Reflecting| !self.known.has(registration);
            if now.iter().any(is_new) {
                return;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

fn reflecting(agent: &Agent) -> Vec<Reflecting> {
    let (_, views) = agent.views();
    let grpc = views
        .values()
        .filter(|view| view.instance.protocol == i32::from(Protocol::Grpc));
    grpc.map(|view| (Arc::clone(&view.registration), view.address))
        .collect()
}

/// Blocks for as long as the kernel needs to list its listening sockets.
fn read(ports: Vec<u16>) -> io::Result<Listening> {
    let mut sockets = Listening::on(ports);
    for path in FILES {
        let file = match File::open(path) {
            // A host without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let mut reader = BufReader::with_capacity(BUFFER, file.take(MAX_BYTES));
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && sockets.take(&line) {
            line.clear();
        }
    }
    Ok(sockets)
}

/// The sockets of each registration when its program was last new. At most one entry for each instance of the node.
#[derive(Debug, Default)]
struct Known(HashMap<Arc<str>, Inodes>);

impl Known {
    fn has(&self, registration: &str) -> bool {
        self.0.contains_key(registration)
    }

    /// The instances at whose address none of the known sockets listens any more, but others do. A new registration is
    /// only remembered: it is queried anyway.
    fn restarted(&mut self, instances: &[Reflecting], sockets: &Listening) -> Vec<Reflecting> {
        let mut before = std::mem::take(&mut self.0);
        let mut restarted = Vec::new();
        for (registration, address) in instances {
            let now = sockets.at(*address);
            let kept = match before.remove(registration) {
                None => now,
                // Some are the same: a program that opens and closes sockets of its own, or has none at the moment.
                Some(known) if now.is_empty() || !known.is_disjoint(&now) => known,
                Some(_) => {
                    restarted.push((Arc::clone(registration), *address));
                    now
                }
            };
            self.0.insert(Arc::clone(registration), kept);
        }
        restarted
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, Listening, Reflecting};

    /// The sockets with these inodes at 127.0.0.1:2024.
    fn sockets(inodes: &[u64]) -> Listening {
        let mut all = Listening::on([2024]);
        let local = u32::from_ne_bytes([127, 0, 0, 1]);
        for inode in inodes {
            all.take(&format!(
                "0: {local:08X}:07E8 00000000:0000 0A 0:0 0:0 0 0 0 {inode}"
            ));
        }
        all
    }

    #[test]
    fn only_sockets_that_were_all_replaced_mean_a_restart() {
        let one: [Reflecting; 1] = [("r1".into(), "127.0.0.1:2024".parse().unwrap())];
        let mut known = Known::default();
        for (inodes, restarted) in [
            (&[1, 2][..], false),
            (&[1, 2], false),
            (&[2, 3], false),
            // It is away, and back.
            (&[], false),
            (&[1], false),
            (&[3, 4], true),
            (&[3, 4], false),
            (&[], false),
            (&[5], true),
        ] {
            let found = known.restarted(&one, &sockets(inodes));
            assert_eq!(!found.is_empty(), restarted, "{inodes:?}");
        }
        // Forgotten with its registration.
        assert!(known.restarted(&[], &sockets(&[5])).is_empty());
        assert!(!known.has("r1"));
    }
}
