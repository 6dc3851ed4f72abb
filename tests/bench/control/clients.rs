//! Many delta clients in one process, each with a gRPC stream on its own connection. Each subscribes like a proxy that
//! uses every service, acknowledges responses, and reconnects with the versions that it has. Once settled, all clients
//! have the same state, so it is stored once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic_prost::ProstCodec;

use super::plane;
use super::wire::{CLUSTER, DeltaRequest, DeltaResponse, ENDPOINTS, INDEX, PATH, proxy};

/// The largest response that a client accepts.
const MAX_RESPONSE: usize = 256 << 20;
/// Pause before a client reconnects.
const RETRY: Duration = Duration::from_millis(100);

/// Type → name → version.
type Versions = HashMap<String, HashMap<String, String>>;

struct Shared {
    address: SocketAddr,
    services: Vec<String>,
    versions: Mutex<Versions>,
    /// The number of assignments that all clients together received, and when the last one was acknowledged.
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    assignments: usize,
    at: Instant,
    streams: usize,
}

impl Shared {
    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Fleet {
    shared: Arc<Shared>,
    seen: watch::Receiver<Progress>,
    clients: usize,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Connects this many clients; returns at once.
    pub(super) fn connect(address: SocketAddr, clients: usize, services: Vec<String>) -> Self {
        let (progress, seen) = watch::channel(Progress {
            assignments: 0,
            at: Instant::now(),
            streams: 0,
        });
        let shared = Arc::new(Shared {
            address,
            services,
            versions: Mutex::default(),
            progress,
        });
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            tasks.spawn(client(Arc::clone(&shared), number));
        }
        Self {
            shared,
            seen,
            clients,
            _tasks: tasks,
        }
    }

    /// Waits until every client has every assignment.
    pub(super) async fn settled(&mut self, patience: Duration) -> anyhow::Result<()> {
        let all = self.clients * self.shared.services.len();
        self.reached(all, patience).await.map(drop)
    }

    /// Waits until every client has an open stream.
    pub(super) async fn connected(&mut self, patience: Duration) -> anyhow::Result<()> {
        let clients = self.clients;
        let all = self.seen.wait_for(|progress| progress.streams == clients);
        let Ok(Ok(_)) = tokio::time::timeout(patience, all).await else {
            anyhow::bail!("not every client is connected after {patience:?}");
        };
        Ok(())
    }

    /// The number of assignments that all clients together have received so far.
    pub(super) fn assignments(&self) -> usize {
        self.seen.borrow().assignments
    }

    /// Waits until each client has received one more assignment; `before` is the total before that. Returns when the
    /// last one was acknowledged.
    pub(super) async fn each_after(
        &mut self,
        before: usize,
        patience: Duration,
    ) -> anyhow::Result<Instant> {
        self.reached(before + self.clients, patience).await
    }

    async fn reached(&mut self, assignments: usize, patience: Duration) -> anyhow::Result<Instant> {
        let reached = self
            .seen
            .wait_for(|progress| progress.assignments >= assignments);
        let Ok(reached) = tokio::time::timeout(patience, reached).await else {
            let now = self.assignments();
            anyhow::bail!("{now} of {assignments} assignments came within {patience:?}");
        };
        let progress = *reached.context("the clients have ended")?;
        ensure!(
            progress.assignments == assignments,
            "{} assignments came where {assignments} were due: a change was sent twice",
            progress.assignments
        );
        Ok(progress.at)
    }
}

async fn client(shared: Arc<Shared>, number: usize) {
    let mut held = Versions::new();
    loop {
        // A stream that fails to open or ends is reopened.
        if let Ok(open) = open(&shared, number, &held).await {
            follow(&shared, number, open).await;
            held = shared.versions().clone();
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Follows one stream until it ends.
async fn follow(shared: &Shared, number: usize, open: Open) {
    let (mut answers, requests) = open;
    shared
        .progress
        .send_modify(|progress| progress.streams += 1);
    while let Ok(Some(response)) = answers.message().await {
        let DeltaResponse {
            resources,
            type_url,
            nonce,
        } = response;
        let assignments = if type_url == ENDPOINTS {
            resources.len()
        } else {
            0
        };
        // All clients receive the same: the first one stores it for all.
        if number == 0 {
            let mut versions = shared.versions();
            let held = versions.entry(type_url.clone()).or_default();
            held.extend(resources.into_iter().map(|it| (it.name, it.version)));
        }
        let acknowledgement = DeltaRequest {
            type_url,
            nonce,
            ..DeltaRequest::default()
        };
        if requests.send(acknowledgement).await.is_err() {
            break;
        }
        if assignments > 0 {
            shared.progress.send_modify(|progress| {
                progress.assignments += assignments;
                progress.at = Instant::now();
            });
        }
    }
    shared
        .progress
        .send_modify(|progress| progress.streams -= 1);
}

type Open = (tonic::Streaming<DeltaResponse>, mpsc::Sender<DeltaRequest>);

/// Opens a stream; `held` has the versions that the client already has.
async fn open(shared: &Shared, number: usize, held: &Versions) -> anyhow::Result<Open> {
    let ask = |url: &str, names: Vec<String>| DeltaRequest {
        type_url: url.to_owned(),
        subscribe: names,
        initial_versions: held.get(url).cloned().unwrap_or_default(),
        ..DeltaRequest::default()
    };
    let everything = || vec!["*".to_owned()];
    let mut first = ask(CLUSTER, everything());
    first.node = Some(proxy(&format!("bench-{number}")));
    let (requests, queue) = mpsc::channel(16);
    requests.send(first).await?;
    requests.send(ask(INDEX, everything())).await?;
    requests
        .send(ask(ENDPOINTS, shared.services.clone()))
        .await?;
    let mut grpc = tonic::client::Grpc::new(plane::channel(shared.address)?)
        .max_decoding_message_size(MAX_RESPONSE);
    grpc.ready().await?;
    let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
    let path = http::uri::PathAndQuery::from_static(PATH);
    let stream = tonic::Request::new(ReceiverStream::new(queue));
    let answers = grpc.streaming(stream, path, codec).await?.into_inner();
    Ok((answers, requests))
}
