//! Several hosts on one machine: one network namespace each, all connected to one bridge, with this machine's own
//! namespace. A host can be unplugged, and the path between two of them can be blocked. Everything is removed at the end;
//! what a killed test left is removed by the next one. Needs root and iproute2.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::process::Start;
use crate::tools::system;

const PREFIX: &str = "heddle-";

/// The number of the next network of this process. Held while one is made: two at once would find the same subnet free.
static NEXT: Mutex<u32> = Mutex::new(0);

/// A bridge; hosts are on it as long as they live.
pub struct Network {
    /// Unique among all processes of the machine: process id and number.
    name: String,
    bridge: String,
    subnet: [u8; 3],
    hosts: u8,
}

impl Network {
    pub fn new() -> Self {
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        if *next == 0 {
            remove_stale(pid);
        }
        let number = *next;
        *next += 1;
        let network = Self {
            name: format!("{PREFIX}{pid}-{number}"),
            // At most 15 bytes: "hb", a process id of at most 22 bits in hex, "n", the number.
            bridge: format!("hb{pid:x}n{number:x}"),
            subnet: free_subnet(pid, number),
            hosts: 0,
        };
        let [a, b, c] = network.subnet;
        // Left to itself a bridge takes the lowest address of what is plugged in: hosts that know the one before would
        // send into the void until they ask again, half a minute later.
        let mac = format!("02:68:62:{a:02x}:{b:02x}:{c:02x}");
        ip(&format!(
            "link add {} address {mac} type bridge",
            network.bridge
        ));
        let here = network.here();
        ip(&format!("address add {here}/24 dev {}", network.bridge));
        ip(&format!("link set {} up", network.bridge));
        network
    }

    /// This machine's own address on the bridge.
    pub fn here(&self) -> IpAddr {
        self.address(254)
    }

    /// A further address of this machine on the bridge, which a host can lose without losing the first.
    pub fn also_here(&self) -> IpAddr {
        let addr = self.address(253);
        ip(&format!("address add {addr}/24 dev {}", self.bridge));
        addr
    }

    fn address(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.subnet;
        IpAddr::V4(Ipv4Addr::new(a, b, c, last))
    }

    /// A further host, plugged in.
    pub fn host(&mut self, name: &str) -> Host {
        self.hosts += 1;
        let host = Host {
            namespace: format!("{}-{name}", self.name),
            bridge: self.bridge.clone(),
            plug: format!("{}h{:x}", self.bridge.replace("hb", "hv"), self.hosts),
            addr: self.address(self.hosts),
        };
        let Host {
            namespace, plug, ..
        } = &host;
        ip(&format!("netns add {namespace}"));
        ip(&format!(
            "link add {plug} type veth peer name eth0 netns {namespace}"
        ));
        ip(&format!("link set {plug} master {} up", self.bridge));
        host.ip(&format!("address add {}/24 dev eth0", host.addr));
        host.ip("link set lo up");
        host.ip("link set eth0 up");
        // What comes from an address that a host cannot answer is dropped: a blocked path is blocked in both directions.
        let strict = "echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter";
        inside(&host.namespace, &["sh", "-c", strict]);
        host
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Errors are ignored: the test may be failing already, and the next one removes what is left.
        let _ = try_ip(&format!("link delete {}", self.bridge));
    }
}

/// One host. It must outlive what runs in it.
pub struct Host {
    namespace: String,
    bridge: String,
    /// This machine's end of its cable.
    plug: String,
    pub addr: IpAddr,
}

impl Host {
    /// The same command, in this host. The process id stays that of the command.
    pub fn inside(&self, start: Start) -> Start {
        start.behind(&iproute(), &["netns", "exec", &self.namespace])
    }

    /// Drops all packets in both directions without any notification, as behind a dead switch.
    pub fn unplug(&self) {
        ip(&format!("link set {} nomaster", self.plug));
    }

    pub fn plug_in(&self) {
        ip(&format!("link set {} master {}", self.plug, self.bridge));
    }

    /// Drops packets to and from this address; the rest of the network stays reachable.
    pub fn block(&self, addr: IpAddr) {
        self.ip(&format!("route add blackhole {addr}/32"));
    }

    pub fn unblock(&self, addr: IpAddr) {
        self.ip(&format!("route delete blackhole {addr}/32"));
    }

    fn ip(&self, words: &str) {
        ip(&format!("-n {} {words}", self.namespace));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = try_ip(&format!("link delete {}", self.plug));
        let _ = try_ip(&format!("netns delete {}", self.namespace));
    }
}

fn iproute() -> PathBuf {
    system("ip", "iproute2")
}

fn ip(words: &str) {
    if let Err(error) = try_ip(words) {
        panic!("ip {words}: {error}; hosts of their own need root and network namespaces");
    }
}

/// A short command in a host.
fn inside(namespace: &str, command: &[&str]) {
    let mut words = vec!["netns", "exec", namespace];
    words.extend(command);
    if let Err(error) = run(&words) {
        panic!("{command:?} in a network namespace: {error}");
    }
}

fn try_ip(words: &str) -> Result<String, String> {
    run(&words.split(' ').collect::<Vec<_>>())
}

fn run(words: &[&str]) -> Result<String, String> {
    let ran = Command::new(iproute())
        .args(words)
        .output()
        .map_err(|error| error.to_string())?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned())
}

/// Of 10.200.0.0 to 10.255.255.0, one without a route. Processes begin at different ones, so that two that start at the
/// same time do not choose the same.
fn free_subnet(pid: u32, number: u32) -> [u8; 3] {
    const COUNT: u32 = 56 * 256;
    let first = (pid % 896) * 16 + number;
    let bytes = (0..COUNT).map(|step| {
        let place = (first + step) % COUNT;
        let [_, _, b, c] = place.to_be_bytes();
        [10, 200 + b, c]
    });
    let mut free = bytes.filter(|[a, b, c]| {
        try_ip(&format!("route show {a}.{b}.{c}.0/24")).is_ok_and(|output| output.is_empty())
    });
    free.next().expect("a subnet of 10.200.0.0/13 is free")
}

/// Removes the networks of processes that are gone, and of one that had the process id of this one, which has none yet.
fn remove_stale(own: u32) {
    let gone = |pid| pid == own || !Path::new(&format!("/proc/{pid}")).exists();
    for name in names("/run/netns") {
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'));
        let pid = pid.and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(gone) {
            // Its cables go with it.
            let _ = try_ip(&format!("netns delete {name}"));
        }
    }
    for name in names("/sys/class/net") {
        let pid = name
            .strip_prefix("hb")
            .and_then(|rest| rest.split_once('n'));
        let pid = pid.and_then(|(pid, _)| u32::from_str_radix(pid, 16).ok());
        if pid.is_some_and(gone) {
            let _ = try_ip(&format!("link delete {name}"));
        }
    }
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::time::Duration;

    use super::{Host, Network};
    use crate::process::{Start, run};
    use crate::tools::system;
    use crate::wait::{seen, within};

    /// A bridge or a host that has lost another's address asks for it after half a minute or more: what is found sooner
    /// was not lost.
    const FOUND: Duration = Duration::from_secs(12);

    /// One ICMP-free probe: a TCP connection from inside to the listener out here.
    async fn reaches(host: &Host, addr: SocketAddr) -> bool {
        let probe = format!(
            "timeout 2 bash -c '</dev/tcp/{}/{}'",
            addr.ip(),
            addr.port()
        );
        let start = Start::new("probe", &system("bash", "bash")).args(["-c", &probe]);
        run(host.inside(start)).await.code == Some(0)
    }

    /// A cable that was just plugged in takes the first packets a moment later, and a packet that was lost is sent again
    /// after a second.
    async fn finds(host: &Host, addr: SocketAddr) {
        within(FOUND, "the host reaches out", async || {
            seen(reaches(host, addr).await, "no connection")
        })
        .await;
    }

    #[tokio::test]
    async fn a_host_is_cut_off_and_found_again() {
        let mut network = Network::new();
        let host = network.host("h");
        let listener = TcpListener::bind((network.here(), 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        finds(&host, addr).await;
        host.unplug();
        assert!(!reaches(&host, addr).await);
        host.plug_in();
        finds(&host, addr).await;
        host.block(addr.ip());
        assert!(!reaches(&host, addr).await);
        host.unblock(addr.ip());
        finds(&host, addr).await;
        let namespace = format!("/run/netns/{}", host.namespace);
        assert!(std::path::Path::new(&namespace).exists());
        drop((host, network));
        assert!(!std::path::Path::new(&namespace).exists());
    }

    #[tokio::test]
    async fn who_is_unplugged_disturbs_no_other() {
        let mut network = Network::new();
        let hosts = [network.host("h"), network.host("i")];
        let listener = TcpListener::bind((network.here(), 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        for host in &hosts {
            finds(host, addr).await;
        }
        for (victim, other) in [(0, 1), (1, 0)] {
            hosts[victim].unplug();
            finds(&hosts[other], addr).await;
            hosts[victim].plug_in();
            finds(&hosts[other], addr).await;
        }
    }
}
