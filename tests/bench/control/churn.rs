//! The cost of changes in a service of a given size: single changes, and all instances leaving and joining repeatedly.
//! Meanwhile other nodes send Hellos; their latency shows the effect on other sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use heddle_proto::control::v1::{Change, GoneInstance, LocalInstance, node_message};

use super::clients::Fleet;
use super::nodes::{Node, instance, message};
use super::plane::Plane;
use super::{Figures, REST, TIMEOUT, at, millis, number};
use crate::options::Control;
use crate::rounds::micros;

/// The service that changes.
const SERVICE: usize = 0;
/// The number of changes that are measured one by one, and the pause between them.
const SINGLE: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// How long instances leave and join, and how many per message.
const CHURN: Duration = Duration::from_secs(10);
const TOGETHER: usize = 500;
/// Pause between two Hellos.
const BETWEEN: Duration = Duration::from_millis(50);
/// The first number of the nodes that send Hellos.
const HONEST: usize = 1_000;

/// Runs once for each number of endpoints, with clients that use the service.
pub(super) async fn run(options: &Control, figures: &mut Figures) -> anyhow::Result<()> {
    for &endpoints in &options.churn {
        let plane = Plane::start(options.store.as_deref()).await?;
        let mut node = Node::open(plane.channel()?, 0, 0).await?;
        put(&mut node, endpoints).await?;
        let names = vec![format!("{}.default", super::nodes::service(SERVICE))];
        let mut fleet = Fleet::connect(plane.grpc, options.churn_clients, names);
        fleet.settled(TIMEOUT).await?;
        tokio::time::sleep(REST).await;
        let of = |what: &str| format!("{endpoints} endpoints: {what}");

        let cpu = plane.cpu()?;
        for turn in 0..SINGLE {
            let changed = numbered(turn % endpoints, 2 + u32::try_from(turn)?);
            let sequence = node.send(vec![changed], Vec::new()).await?;
            node.durable(sequence).await?;
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(REST).await;
        let each = micros(plane.cpu()? - cpu) / number(SINGLE as u64);
        figures.put(&of("CPU of one change, µs"), each);

        let churning = Arc::new(AtomicBool::new(true));
        let hellos = tokio::spawn(hellos(plane.grpc, Arc::clone(&churning)));
        let (cpu, start) = (plane.cpu()?, Instant::now());
        let mut changes = 0;
        while start.elapsed() < CHURN {
            changes += remove(&mut node, endpoints).await?;
            changes += put(&mut node, endpoints).await?;
        }
        let (cpu, time) = (plane.cpu()? - cpu, start.elapsed());
        churning.store(false, Ordering::Relaxed);
        let mut waits = hellos.await??;
        waits.sort_unstable();
        figures.put(
            &of("changes per second in churn"),
            number(changes) / time.as_secs_f64(),
        );
        figures.put(
            &of("CPU per change in churn, µs"),
            micros(cpu) / number(changes),
        );
        figures.put(&of("Hello in churn, p50 ms"), millis(at(&waits, 50)));
        figures.put(&of("Hello in churn, p99 ms"), millis(at(&waits, 99)));
        figures.put(&of("memory, MB"), super::megabytes(plane.memory()?));
    }
    Ok(())
}

fn numbered(number: usize, weight: u32) -> LocalInstance {
    let mut local = instance(number / 200, SERVICE, weight);
    if let Some(instance) = &mut local.instance {
        instance.id = format!("i{number}");
        instance.address = format!("10.{}.{}.2:8000", number / 200, number % 200);
    }
    local
}

/// All instances join. Returns how many.
async fn put(node: &mut Node, endpoints: usize) -> anyhow::Result<u64> {
    let all: Vec<_> = (0..endpoints).map(|each| numbered(each, 1)).collect();
    let mut sequence = 0;
    for part in all.chunks(TOGETHER) {
        sequence = node.send(part.to_vec(), Vec::new()).await?;
    }
    node.durable(sequence).await?;
    Ok(endpoints as u64)
}

/// All instances leave. Returns how many.
async fn remove(node: &mut Node, endpoints: usize) -> anyhow::Result<u64> {
    let gone = |each| GoneInstance {
        service: super::nodes::service(SERVICE),
        namespace: "default".to_owned(),
        id: format!("i{each}"),
        cause: String::new(),
    };
    let all: Vec<_> = (0..endpoints).map(gone).collect();
    let mut sequence = 0;
    for part in all.chunks(TOGETHER) {
        sequence = node.send(Vec::new(), part.to_vec()).await?;
    }
    node.durable(sequence).await?;
    Ok(endpoints as u64)
}

impl Node {
    async fn send(
        &mut self,
        upserted: Vec<LocalInstance>,
        removed: Vec<GoneInstance>,
    ) -> anyhow::Result<u64> {
        let sequence = self.next();
        let change = Change {
            sequence,
            upserted,
            removed,
        };
        self.say(message(node_message::Message::Change(change)))
            .await
            .context("the session has ended")?;
        Ok(sequence)
    }
}

/// One node after the other opens a session with an instance of another service. Returns how long each took.
async fn hellos(
    grpc: std::net::SocketAddr,
    churning: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Duration>> {
    let mut waits = Vec::new();
    while churning.load(Ordering::Relaxed) {
        let channel = super::plane::channel(grpc)?;
        let start = Instant::now();
        let node = Node::open(channel, HONEST + waits.len(), 1).await?;
        waits.push(start.elapsed());
        drop(node);
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(waits)
}
