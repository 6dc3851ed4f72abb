//! The processes of the demo, and where each listens. Input: the options. Output: command lines, and the addresses to
//! check before the start. Nothing is started and no file is created here.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

/// Start a mesh on this host: a control plane, three nodes with the echo service, and calls
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle demo", version)]
pub(crate) struct Options {
    /// Keep the mesh's data in this folder [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Calls per second through each node; 0 makes none
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) rate: u32,
    /// Echo instances on each node
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub(crate) instances: u32,
    /// Use free ports for the first node and the control plane too, instead of the default ports
    #[arg(long)]
    pub(crate) free_ports: bool,
    /// Print every line that the processes of the mesh log
    #[arg(long)]
    pub(crate) verbose: bool,
}

pub(crate) const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// The listeners of the control plane and of the first node: name and default port.
const CONTROL: [(&str, u16); 2] = [("listen", 15010), ("http", 15014)];
const FIRST_NODE: [(&str, u16); 4] = [
    ("outbound", 15001),
    ("inbound", 15008),
    ("agent", 15002),
    ("admin", 15000),
];

/// One process: this program with other arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// The arguments after the program's name.
    pub(crate) words: Vec<String>,
    /// Flag, key of the ready line, and address. The ready line has the bound address under this key; a restarted part
    /// keeps it.
    pub(crate) addresses: Vec<(&'static str, &'static str, String)>,
    /// The time between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
}

impl Part {
    /// The command line: of the first start, or of a restart with the addresses of the first.
    pub(crate) fn line(&self, ready: Option<&Ready>) -> Vec<String> {
        let mut line = self.words.clone();
        for (flag, key, address) in &self.addresses {
            let settled = ready
                .and_then(|ready| ready.address(key))
                .map(|address| address.to_string());
            line.push((*flag).to_owned());
            line.push(settled.unwrap_or_else(|| address.clone()));
        }
        line
    }
}

/// A parsed ready line: `<binary> ready: key value, key value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready(BTreeMap<String, String>);

impl Ready {
    pub(crate) fn read(line: &str) -> Option<Self> {
        let (_, pairs) = line.split_once(" ready: ")?;
        let pairs = pairs
            .split(", ")
            .filter_map(|pair| pair.trim().split_once(' '));
        Some(Self(
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        ))
    }

    /// The first TCP address of a listener.
    pub(crate) fn address(&self, key: &str) -> Option<SocketAddr> {
        self.0
            .get(key)?
            .split('+')
            .find_map(|address| address.trim().parse().ok())
    }
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

pub(crate) fn control(options: &Options, data: &Path) -> Part {
    let port = |default| address(if options.free_ports { 0 } else { default });
    Part {
        name: "control plane".into(),
        words: vec![
            "control".into(),
            "--store".into(),
            format!("embedded:{}", data.join("store").display()),
        ],
        addresses: CONTROL
            .iter()
            .map(|&(word, default)| match word {
                "listen" => ("--listen", "grpc", port(default)),
                _ => ("--http", "http", port(default)),
            })
            .collect(),
        grace: Duration::from_secs(2),
    }
}

/// The folder of a node's services files.
pub(crate) fn services_dir(data: &Path, node: &str) -> PathBuf {
    data.join("services").join(node)
}

pub(crate) fn node(
    index: usize,
    name: &str,
    options: &Options,
    data: &Path,
    control: SocketAddr,
) -> Part {
    let own_ports = index > 0 || options.free_ports;
    let port = |default| address(if own_ports { 0 } else { default });
    let state = data.join(name);
    let words = [
        "proxy".into(),
        "--node".into(),
        name.into(),
        "--control".into(),
        format!("http://{control}"),
        "--state-dir".into(),
        state.display().to_string(),
        "--services-dir".into(),
        services_dir(data, name).display().to_string(),
        "--workers".into(),
        "1".into(),
        // Streams left open in another terminal must not delay the end.
        "--drain-timeout".into(),
        "2s".into(),
    ];
    Part {
        name: name.to_owned(),
        words: words.into(),
        addresses: FIRST_NODE
            .iter()
            .map(|&(word, default)| match word {
                "outbound" => ("--outbound", "outbound", port(default)),
                "inbound" => ("--inbound", "inbound", port(default)),
                "agent" => ("--agent", "agent", port(default)),
                _ => ("--admin", "admin", port(default)),
            })
            .collect(),
        grace: Duration::from_secs(4),
    }
}

pub(crate) fn echo(node: &str, number: u32, agent: SocketAddr) -> Part {
    let instance = format!("echo-{}-{number}", node.trim_start_matches("node-"));
    let words = [
        "echo".into(),
        "--instance".into(),
        instance.clone(),
        "--agent".into(),
        format!("http://{agent}"),
    ];
    Part {
        name: instance,
        words: words.into(),
        addresses: vec![("--listen", "listen", address(0))],
        grace: Duration::from_secs(7),
    }
}

/// Fails if default ports are taken; names all of them in one line.
pub(crate) fn check_ports(options: &Options) -> Result<(), String> {
    if options.free_ports {
        return Ok(());
    }
    let control = CONTROL.iter().map(|&(word, port)| {
        (
            if word == "listen" { "grpc" } else { word },
            "the control plane",
            port,
        )
    });
    let node = FIRST_NODE
        .iter()
        .map(|&(word, port)| (word, NODES[0], port));
    refuse_taken(control.chain(node))
}

pub(crate) fn refuse_taken(
    ports: impl Iterator<Item = (&'static str, &'static str, u16)>,
) -> Result<(), String> {
    let taken: Vec<String> = ports
        .filter(|&(_, _, port)| in_use(port))
        .map(|(word, whose, port)| format!("{port} ({word} of {whose})"))
        .collect();
    match taken.as_slice() {
        [] => Ok(()),
        [one] => Err(format!("port {one} is in use: {REMEDY}")),
        several => Err(format!("ports {} are in use: {REMEDY}", several.join(", "))),
    }
}

const REMEDY: &str =
    "stop the process that listens there (another demo?), or use other ports with --free-ports";

fn in_use(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|why| why.kind() == io::ErrorKind::AddrInUse)
}
