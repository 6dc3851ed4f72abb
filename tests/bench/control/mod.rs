//! The cost of an endpoint update: a release heddle-control on core 0, and on core 1 the nodes that write and the
//! clients that receive, all over real gRPC streams. Prints the figures as lines and writes them as JSON. The control
//! plane runs as its own process; none of its code is linked here.

mod churn;
mod clients;
mod greedy;
mod nodes;
mod plane;
mod wire;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::options::Control;
use crate::rounds::{cpu_time, micros};
use clients::Fleet;
use nodes::Node;
use plane::Plane;

/// The longest wait for anything.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The pause before a measurement, until the control plane is idle.
const REST: Duration = Duration::from_secs(2);
/// Changes in flight per node while the store is saturated.
const WINDOW: u64 = 256;
/// How long the store is saturated.
const SATURATED: Duration = Duration::from_secs(5);
/// Instances per node in the part with many live instances.
const LIVE_PER_NODE: usize = 1_000;

pub(crate) fn run(options: &Control) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut figures = Figures::default();
    runtime.block_on(async {
        if options.clients > 0 {
            writes(options, &mut figures).await?;
            pushes(options, &mut figures).await?;
        }
        churn::run(options, &mut figures).await?;
        if options.greedy > 0 {
            greedy::run(options, &mut figures).await?;
        }
        if options.live > 0 {
            live(options, &mut figures).await?;
        }
        anyhow::Ok(())
    })?;
    if let Some(path) = &options.json {
        std::fs::write(
            path,
            serde_json::to_string_pretty(&Value::Object(figures.0))?,
        )?;
    }
    Ok(())
}

/// How many changes per second become durable, without clients.
async fn writes(options: &Control, figures: &mut Figures) -> anyhow::Result<()> {
    let plane = Plane::start(options.store.as_deref()).await?;
    let nodes = open(&plane, options).await?;
    let fsyncs = plane.metric("heddle_store_fsyncs_total").await?;
    let cpu = plane.cpu()?;
    let start = Instant::now();
    let (changes, _nodes) = nodes::saturate(nodes, options.services, WINDOW, SATURATED).await?;
    let seconds = start.elapsed().as_secs_f64();
    let fsyncs = plane.metric("heddle_store_fsyncs_total").await? - fsyncs;
    let cpu = plane.cpu()? - cpu;
    figures.put("instance changes per second", number(changes) / seconds);
    figures.put("fsyncs per second meanwhile", number(fsyncs) / seconds);
    figures.put("server CPU per change, µs", micros(cpu) / number(changes));
    Ok(())
}

/// The cost of one change when many clients receive it.
async fn pushes(options: &Control, figures: &mut Figures) -> anyhow::Result<()> {
    let mut plane = Plane::start(options.store.as_deref()).await?;
    let mut nodes = open(&plane, options).await?;
    tokio::time::sleep(REST).await;
    let before = plane.memory()?;
    let names = (0..options.services)
        .map(|number| format!("{}.default", nodes::service(number)))
        .collect();
    let start = Instant::now();
    let mut fleet = Fleet::connect(plane.grpc, options.clients, names);
    fleet.settled(TIMEOUT).await?;
    figures.put(
        "first state of all clients, s",
        start.elapsed().as_secs_f64(),
    );
    tokio::time::sleep(REST).await;
    let with_clients = plane.memory()?;
    let encodes = plane.metric("heddle_xds_encodes_total").await?;
    let (cpu, own) = (plane.cpu()?, cpu_time(std::process::id())?);
    let mut times = Vec::new();
    for turn in 0..options.changes {
        times.push(change(&mut nodes, &mut fleet, turn, options.services).await?);
        tokio::time::sleep(options.pause).await;
    }
    let cpu = plane.cpu()? - cpu;
    let own = cpu_time(std::process::id())? - own;
    let encodes = plane.metric("heddle_xds_encodes_total").await? - encodes;
    let pushes = number((options.changes * options.clients) as u64);
    figures.put(
        "encodes per change",
        number(encodes) / number(options.changes as u64),
    );
    figures.put("server CPU per client and push, µs", micros(cpu) / pushes);
    figures.put("clients' own CPU per push, µs", micros(own) / pushes);
    times.sort_unstable();
    figures.put("register to last ACK, p50 ms", millis(at(&times, 50)));
    figures.put("register to last ACK, p99 ms", millis(at(&times, 99)));
    figures.put("memory without clients, MB", megabytes(before));
    figures.put("memory with all clients, MB", megabytes(with_clients));
    let each = number(with_clients.saturating_sub(before)) / number(options.clients as u64);
    figures.put("memory per client, KB", each / 1e3);
    resync(options, &mut plane, &mut nodes, &mut fleet, figures).await
}

/// The time from sending a change until the last client acknowledges it.
async fn change(
    nodes: &mut [Node],
    fleet: &mut Fleet,
    turn: usize,
    services: usize,
) -> anyhow::Result<Duration> {
    let node = turn % nodes.len();
    let service = turn / nodes.len() % services;
    let weight = 2 + u32::try_from(turn / nodes.len() / services % 2)?;
    let before = fleet.assignments();
    let start = Instant::now();
    let node = nodes.get_mut(node).context("there is a node")?;
    node.change(service, weight).await?;
    Ok(fleet.each_after(before, TIMEOUT).await? - start)
}

/// The control plane is killed and restarted: how long until it is ready and all clients are back, and how much it
/// sends again.
async fn resync(
    options: &Control,
    plane: &mut Plane,
    nodes: &mut Vec<Node>,
    fleet: &mut Fleet,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    nodes.clear();
    let start = Instant::now();
    plane.restart().await?;
    let ready = start.elapsed();
    fleet.connected(TIMEOUT).await?;
    let connected = start.elapsed();
    let sent = plane.metric("heddle_xds_response_bytes_total").await?;
    *nodes = open(plane, options).await?;
    figures.put("restart: ready after, s", ready.as_secs_f64());
    figures.put(
        "restart: all clients back after, s",
        connected.as_secs_f64(),
    );
    figures.put(
        "restart: server CPU until then, s",
        plane.cpu()?.as_secs_f64(),
    );
    figures.put(
        "restart: bytes of resources sent again, KB",
        number(sent) / 1e3,
    );
    Ok(())
}

/// The memory that many instances take.
async fn live(options: &Control, figures: &mut Figures) -> anyhow::Result<()> {
    let plane = Plane::start(options.store.as_deref()).await?;
    let nodes = options.live / LIVE_PER_NODE;
    let start = Instant::now();
    let _nodes = nodes::open_all(|| plane.channel(), nodes, LIVE_PER_NODE).await?;
    figures.put("live: instances", number(options.live as u64));
    figures.put("live: registered within, s", start.elapsed().as_secs_f64());
    tokio::time::sleep(REST).await;
    figures.put("live: memory, MB", megabytes(plane.memory()?));
    Ok(())
}

async fn open(plane: &Plane, options: &Control) -> anyhow::Result<Vec<Node>> {
    nodes::open_all(|| plane.channel(), options.endpoints, options.services).await
}

/// Names and figures in the order of measurement.
#[derive(Default)]
struct Figures(Map<String, Value>);

impl Figures {
    fn put(&mut self, name: &str, value: f64) {
        println!("{name:<46} {value:>12.2}");
        self.0.insert(name.to_owned(), json!(value));
    }
}

fn at(sorted: &[Duration], part: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((sorted.len() * part / 100).min(last))
        .copied()
        .unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn megabytes(bytes: u64) -> f64 {
    number(bytes) / 1e6
}

#[allow(
    clippy::cast_precision_loss,
    reason = "counts of bytes and changes are far below 2^52"
)]
fn number(count: u64) -> f64 {
    count as f64
}
