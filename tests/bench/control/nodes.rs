//! Simulated nodes with instances. Like an agent, each has one session, and sends a Hello with its full set and then
//! changes. The caller decides how many changes are in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use heddle_proto::control::v1::{
    Beat, Change, ControlMessage, Hello, LocalInstance, NodeMessage, ProtoService, ack,
    control_message, node_message, node_session_client::NodeSessionClient,
};
use heddle_proto::registry::v1::{Health, Instance, Protocol};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const BEAT: Duration = Duration::from_secs(3);
/// The most messages that wait for the transport.
const QUEUE: usize = 1024;
/// Makes the process ids unique: each session counts as a new process of its node.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// The name of the service with this number.
pub(super) fn service(number: usize) -> String {
    format!("s{number:04}")
}

pub(super) struct Node {
    number: usize,
    requests: mpsc::Sender<NodeMessage>,
    sequence: u64,
    acknowledged: watch::Receiver<u64>,
    tasks: [JoinHandle<()>; 2],
}

impl Node {
    /// Opens a session with one instance of each of `services` services.
    pub(super) async fn open(
        channel: Channel,
        number: usize,
        services: usize,
    ) -> anyhow::Result<Self> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let hello = Hello {
            node: format!("node-{number}"),
            process_id: format!(
                "bench-{}-{}",
                std::process::id(),
                OPENED.fetch_add(1, Ordering::Relaxed)
            ),
            advertise: format!("10.{}.{}.1:15008", number / 200, number % 200),
            instances: (0..services)
                .map(|service| instance(number, service, 1))
                .collect(),
            version: "bench".to_owned(),
            ..Hello::default()
        };
        requests
            .send(message(node_message::Message::Hello(hello)))
            .await?;
        let mut client = NodeSessionClient::new(channel);
        let mut answers = client.open(ReceiverStream::new(queue)).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.message) {
            Some(control_message::Message::Welcome(_)) => {}
            other => bail!("node {number} is not welcomed: {other:?}"),
        }
        let (progress, acknowledged) = watch::channel(0);
        let tasks = [
            tokio::spawn(beats(requests.clone())),
            tokio::spawn(acks(answers, progress)),
        ];
        Ok(Self {
            number,
            requests,
            sequence: 0,
            acknowledged,
            tasks,
        })
    }

    /// The sequence number of the next change.
    pub(super) fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) async fn say(&self, message: NodeMessage) -> anyhow::Result<()> {
        Ok(self.requests.send(message).await?)
    }

    /// Changes the weight of the node's instance of a service. Returns the sequence number of the change.
    pub(super) async fn change(&mut self, service: usize, weight: u32) -> anyhow::Result<u64> {
        self.sequence += 1;
        let change = Change {
            sequence: self.sequence,
            upserted: vec![instance(self.number, service, weight)],
            removed: Vec::new(),
        };
        self.requests
            .send(message(node_message::Message::Change(change)))
            .await?;
        Ok(self.sequence)
    }

    /// Waits until a change is durable.
    pub(super) async fn durable(&mut self, sequence: u64) -> anyhow::Result<()> {
        self.acknowledged
            .wait_for(|now| *now >= sequence)
            .await
            .context("the session has ended")?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn beats(requests: mpsc::Sender<NodeMessage>) {
    let mut sequence = 0;
    loop {
        tokio::time::sleep(BEAT).await;
        sequence += 1;
        let beat = node_message::Message::Beat(Beat { sequence });
        if requests.send(message(beat)).await.is_err() {
            return;
        }
    }
}

async fn acks(mut answers: Streaming<ControlMessage>, progress: watch::Sender<u64>) {
    loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                if let Some(control_message::Message::Ack(ack)) = answer.message
                    && let Some(ack::Of::Change(sequence)) = ack.of
                {
                    progress.send_replace(sequence);
                }
            }
            Ok(None) => return,
            Err(status) => return eprintln!("a node's session ends: {status}"),
        }
    }
}

pub(super) fn message(message: node_message::Message) -> NodeMessage {
    NodeMessage {
        message: Some(message),
    }
}

pub(super) fn instance(node: usize, number: usize, weight: u32) -> LocalInstance {
    LocalInstance {
        instance: Some(Instance {
            service: service(number),
            namespace: "default".to_owned(),
            id: format!("i{node}"),
            version: "v1".to_owned(),
            address: format!("10.{}.{}.2:{}", node / 200, node % 200, 8000 + number),
            protocol: Protocol::Grpc.into(),
            weight,
            ..Instance::default()
        }),
        health: Health::Healthy.into(),
        protos: vec![ProtoService {
            name: format!("bench.S{number}"),
            idempotent_methods: vec!["Get".to_owned()],
        }],
        ..LocalInstance::default()
    }
}

/// One session per node, opened concurrently.
pub(super) async fn open_all(
    channel: impl Fn() -> anyhow::Result<Channel>,
    nodes: usize,
    services: usize,
) -> anyhow::Result<Vec<Node>> {
    let opening: Vec<_> = (0..nodes)
        .map(|number| Ok(Node::open(channel()?, number, services)))
        .collect::<anyhow::Result<_>>()?;
    futures_util::future::try_join_all(opening).await
}

/// How many changes become durable within `length` when every node keeps `window` of them in flight.
pub(super) async fn saturate(
    nodes: Vec<Node>,
    services: usize,
    window: u64,
    length: Duration,
) -> anyhow::Result<(u64, Vec<Node>)> {
    let stop = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = nodes
        .into_iter()
        .map(|mut node| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let first = node.sequence;
                while !stop.load(Ordering::Relaxed) {
                    let at = usize::try_from(node.sequence)? % services;
                    let weight = 1 + u32::try_from(node.sequence / services as u64 % 2)?;
                    let sent = node.change(at, 3 - weight).await?;
                    node.durable(sent.saturating_sub(window)).await?;
                }
                let last = *node.acknowledged.borrow();
                node.durable(node.sequence).await?;
                anyhow::Ok((last.saturating_sub(first), node))
            })
        })
        .collect();
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    let mut done = 0;
    let mut nodes = Vec::new();
    for task in running {
        let (changes, node) = task.await??;
        done += changes;
        nodes.push(node);
    }
    Ok((done, nodes))
}
