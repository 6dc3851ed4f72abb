//! The output of the demo: progress, what to try, counts of calls. On a terminal the counts are one line that is
//! updated; elsewhere a line is printed from time to time.

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use heddle_options::one_line;
use heddle_proto::count;

use super::traffic::Counts;

/// How often the counts are printed.
const TERMINAL_INTERVAL: Duration = Duration::from_secs(1);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// The most failures that are printed one by one in a second; the counts include the others.
const MAX_FAILURES_SHOWN: u32 = 3;

/// The addresses of a node.
#[derive(Clone, Debug)]
pub(super) struct NodeAddresses {
    pub(super) name: String,
    pub(super) outbound: SocketAddr,
    pub(super) agent: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) services_dir: PathBuf,
}

/// The addresses of the whole mesh.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) control: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) nodes: Vec<NodeAddresses>,
}

pub(super) struct Reporter {
    terminal: bool,
    /// The updated line is on the screen and must be cleared before another line.
    open: bool,
    began: Instant,
    told_since: Instant,
    failures_shown: u32,
}

impl Reporter {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            terminal: io::stdout().is_terminal(),
            open: false,
            began: now,
            told_since: now,
            failures_shown: 0,
        }
    }

    pub(super) fn pause(&self) -> Duration {
        if self.terminal {
            TERMINAL_INTERVAL
        } else {
            PLAIN_INTERVAL
        }
    }

    pub(super) fn print_line(&mut self, text: &str) {
        let mut out = io::stdout().lock();
        let clear = if std::mem::take(&mut self.open) {
            "\r\x1b[2K"
        } else {
            ""
        };
        let _ = writeln!(out, "{clear}{text}").and_then(|()| out.flush());
    }

    /// Prints a step of the start, with the time since the beginning.
    pub(super) fn step(&mut self, text: &str) {
        let line = format!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f32());
        self.print_line(&line);
    }

    pub(super) fn tally(&mut self, counts: &Counts) {
        let line = tally(counts);
        if !self.terminal {
            return self.print_line(&line);
        }
        let mut out = io::stdout().lock();
        // Without wrapping: a line wider than the terminal could not be cleared.
        let _ = write!(out, "\r\x1b[2K\x1b[?7l{line}\x1b[?7h").and_then(|()| out.flush());
        self.open = true;
    }

    pub(super) fn failure(&mut self, text: &str) {
        if self.told_since.elapsed() >= Duration::from_secs(1) {
            self.told_since = Instant::now();
            self.failures_shown = 0;
        }
        self.failures_shown += 1;
        if self.failures_shown <= MAX_FAILURES_SHOWN {
            self.print_line(&one_line(text));
        }
    }
}

pub(super) fn tally(counts: &Counts) -> String {
    let sum = |of: &std::collections::BTreeMap<String, u64>| of.values().sum::<u64>();
    let nodes: Vec<String> = counts
        .answered
        .iter()
        .map(|(node, answered)| format!("{node} {answered}"))
        .collect();
    let mut line = format!(
        "calls: {} answered by {} ({}), {} failed",
        sum(&counts.answered),
        count(counts.instances.len(), "instance"),
        nodes.join(", "),
        sum(&counts.failed)
    );
    if !counts.reasons.is_empty() {
        let reasons: Vec<String> = counts
            .reasons
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        line.push_str(&format!(" ({})", reasons.join(", ")));
    }
    if counts.missed > 0 {
        line.push_str(&format!(
            ", {} not started (too many in flight)",
            counts.missed
        ));
    }
    line
}

/// The addresses, and what to try. `heddle` is the name with which this program was called.
pub(super) fn instructions(addresses: &Addresses, instances: u32, heddle: &str) -> String {
    let Addresses {
        control,
        http,
        nodes,
    } = addresses;
    let mut text = format!(
        "\nThe mesh is up: {}, heddle-echo with {} on each.\n\n  \
         control plane  grpc {control}, http {http}\n",
        count(nodes.len(), "node"),
        count(instances, "instance")
    );
    for NodeAddresses {
        name,
        outbound,
        agent,
        admin,
        ..
    } in nodes
    {
        text.push_str(&format!(
            "  {name:13}  outbound {outbound}, agent {agent}, admin {admin}\n"
        ));
    }
    text.push_str("\nIn another terminal, through any node, with no proto file:\n\n");
    for NodeAddresses { outbound, .. } in nodes {
        text.push_str(&format!("  grpcurl -plaintext {outbound} list\n"));
        text.push_str(&format!(
            "  grpcurl -plaintext -d '{{\"payload\":\"aGVsbG8=\"}}' {outbound} heddle.echo.v1.Echo/Unary\n"
        ));
    }
    text.push_str(&format!(
        "\nThe mesh itself:\n\n  grpcurl -plaintext {control} heddle.status.v1.MeshStatus/GetMesh\n"
    ));
    let at = match control.port() {
        15010 => String::new(),
        _ => format!(" --control http://{control}"),
    };
    for command in ["status", "services", "services heddle-echo", "proxies"] {
        text.push_str(&format!("  {heddle} {command}{at}\n"));
    }
    if let Some(NodeAddresses {
        outbound,
        agent,
        services_dir,
        ..
    }) = nodes.first()
    {
        text.push_str(&format!(
            "\nYour own program as a service of the mesh (it listens on $PORT):\n\n  {heddle} run \
            --service hello{} -- COMMAND\n",
            match agent.port() {
                15002 => String::new(),
                _ => format!(" --agent http://{agent} --outbound http://{outbound}"),
            }
        ));
        text.push_str(&format!(
            "\nA server that runs already, at 127.0.0.1:7001 for example:\n\n  \
             echo '{{service: hello, instances: [{{id: h1, address: \"127.0.0.1:7001\"}}]}}' > '{}/hello.yaml'\n",
            services_dir.display()
        ));
    }
    text.push_str("\nCtrl-C stops everything and leaves nothing behind.\n");
    text
}

/// The ready line, for programs; every part has one.
pub(super) fn ready(addresses: &Addresses) -> String {
    let Addresses {
        control,
        http,
        nodes,
    } = addresses;
    let mut line = format!("heddle-demo ready: grpc {control}, http {http}");
    for NodeAddresses {
        name,
        outbound,
        agent,
        admin,
        ..
    } in nodes
    {
        line.push_str(&format!(
            ", {name}-outbound {outbound}, {name}-agent {agent}, {name}-admin {admin}"
        ));
    }
    line
}
