//! The command line of the benchmarks: which one runs, and with what load.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(
    about = "Measures what a call costs through Heddle, a raw TCP relay and Envoy, and what an endpoint update costs"
)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// CPU per call, calls per second and latencies, in short rounds side by side
    Compare(Compare),
    /// User instructions per call of heddle-proxy, counted by callgrind
    Instructions(Instructions),
    /// What an endpoint update costs the control plane, and what it holds
    Control(Control),
    /// (started by the others) two echo backends
    #[command(hide = true)]
    Backend,
    /// (started by the others) a TCP relay
    #[command(hide = true)]
    Relay {
        #[arg(required = true)]
        to: Vec<SocketAddr>,
    },
}

#[derive(Args)]
pub(crate) struct Compare {
    /// Rounds; each measures every peer once in every shape
    #[arg(long, default_value_t = 15)]
    pub(crate) rounds: usize,
    /// Length of one measurement, in milliseconds
    #[arg(long, default_value = "300", value_parser = milliseconds)]
    pub(crate) window: Duration,
    /// Whom to measure
    #[arg(long, value_delimiter = ',', default_values_t = [Peer::Direct, Peer::Tcp, Peer::Heddle, Peer::Envoy])]
    pub(crate) peers: Vec<Peer>,
    /// Connections x streams of 128 B calls with realistic headers; `-plain` for bare ones, `-64k` for 64 KiB
    #[arg(long, value_delimiter = ',', value_parser = Shape::parse, default_value = "1x1,8x32,64x4,8x32-plain,8x8-64k")]
    pub(crate) shapes: Vec<Shape>,
    /// Where to write the figures as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Instructions {
    /// Calls of the shorter run
    #[arg(long, default_value_t = 2_000)]
    pub(crate) short: usize,
    /// Calls of the longer run; the difference is what is divided
    #[arg(long, default_value_t = 12_000)]
    pub(crate) long: usize,
    #[arg(long, value_delimiter = ',', value_parser = Shape::parse, default_value = "8x32-plain,8x32")]
    pub(crate) shapes: Vec<Shape>,
    /// A folder for callgrind's profiles of the longer runs (read them with callgrind_annotate)
    #[arg(long)]
    pub(crate) profiles: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Control {
    /// Connected delta clients, each of which uses every service; 0 leaves the parts with services of one size out
    #[arg(long, default_value_t = 1_000)]
    pub(crate) clients: usize,
    #[arg(long, default_value_t = 1_000)]
    pub(crate) services: usize,
    /// Endpoints of each service, each on a node of its own
    #[arg(long, default_value_t = 10)]
    pub(crate) endpoints: usize,
    /// Changes that are measured, one after the other
    #[arg(long, default_value_t = 100)]
    pub(crate) changes: usize,
    /// Pause between two of them, in milliseconds
    #[arg(long, default_value = "50", value_parser = milliseconds)]
    pub(crate) pause: Duration,
    /// Instances that live at once in the last part, a thousand to a node; 0 leaves it out
    #[arg(long, default_value_t = 100_000)]
    pub(crate) live: usize,
    /// Endpoints of one service whose instances leave and join again and again, one part for each number
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,9900")]
    pub(crate) churn: Vec<usize>,
    /// Delta clients that use it
    #[arg(long, default_value_t = 10)]
    pub(crate) churn_clients: usize,
    /// Streams of each of three kinds that hold as much memory as they get; 0 leaves them out
    #[arg(long, default_value_t = 0)]
    pub(crate) greedy: usize,
    /// A --store of heddle-control (etcd:URL,…), empty at the start [default: an embedded one for each part]
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// Where to write the figures as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

fn milliseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_millis)
}

/// What the calls go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// Nothing: the load generator talks to the backends.
    Direct,
    /// A relay of bytes.
    Tcp,
    Heddle,
    Envoy,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Tcp => "tcp",
            Self::Heddle => "heddle",
            Self::Envoy => "envoy",
        })
    }
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    /// Size of the message in bytes, in both directions.
    pub(crate) bytes: usize,
    /// Whether requests have a token, trace context and deadline in addition to the minimal headers.
    pub(crate) realistic: bool,
}

impl Shape {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not like 8x32, 8x32-plain or 8x8-64k");
        let (size, kind) = text.split_once('-').unwrap_or((text, ""));
        let (bytes, realistic) = match kind {
            "" => (128, true),
            "plain" => (128, false),
            "64k" => (64 * 1024, true),
            _ => return Err(wrong()),
        };
        let (connections, streams) = size.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| {
            text.parse()
                .ok()
                .filter(|number| (1..=1000).contains(number))
        };
        let connections = number(connections).ok_or_else(wrong)?;
        let streams = number(streams).ok_or_else(wrong)?;
        Ok(Self {
            connections,
            streams,
            bytes,
            realistic,
        })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.connections, self.streams)?;
        match (self.bytes, self.realistic) {
            (128, true) => Ok(()),
            (128, false) => f.write_str("-plain"),
            _ => f.write_str("-64k"),
        }
    }
}
