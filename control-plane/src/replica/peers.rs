//! The other replicas and a connection to each. All are asked at the same time with a time limit, so that a dead
//! replica delays a request by at most that limit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use heddle_proto::control::v1::{
    ListClientsRequest, ListClientsResponse, replica_client::ReplicaClient,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::registry::{Registry, Replica, ViewChanges};

/// Most other replicas that are asked; further ones count as not answering.
const MAX_PEERS: usize = 64;
/// A list that takes longer is left out.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// Most lists at a time from one replica, because they are long.
const MAX_CONCURRENT_LISTS: usize = 4;
/// Longest list: that of 10,000 clients has about 15 MB.
const MAX_LIST_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// During a request a silent connection is pinged: one to a replica that is cut off would never break.
const PING_EVERY: Duration = Duration::from_secs(2);

/// The other replicas of this one. Clones share them.
#[derive(Clone)]
pub struct Peers(watch::Receiver<Arc<Vec<Peer>>>);

/// Another replica.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) replica: Replica,
    /// None if it cannot be reached: it has no address, or an invalid one.
    pub(super) client: Option<ReplicaClient<Channel>>,
    lists: Arc<Semaphore>,
}

/// The answers of the other replicas.
#[derive(Debug)]
pub struct Answers {
    /// In the order of the replicas' names.
    pub answers: Vec<ListClientsResponse>,
    /// Names of those that did not answer, sorted.
    pub unanswered: Vec<String>,
}

impl Peers {
    /// Follows the registry's list until `stop` is cancelled.
    #[must_use]
    pub fn follow(registry: Registry, stop: CancellationToken) -> Self {
        // Subscribed before reading, so that no change is lost between; a restart does the same.
        let changes = registry.subscribe();
        let (sender, peers) = watch::channel(Arc::new(next(&registry, &[])));
        let sender = Arc::new(sender);
        let tasks = registry.options().tasks.clone();
        let mut first = Some(changes);
        tasks.restarted("replica-peers", move || {
            let changes = first.take().unwrap_or_else(|| registry.subscribe());
            let follow = follow(registry.clone(), changes, Arc::clone(&sender));
            stop.clone().run_until_cancelled_owned(follow)
        });
        Self(peers)
    }

    pub(super) fn now(&self) -> Arc<Vec<Peer>> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until a process is no longer a replica.
    pub(super) async fn gone(&self, process_id: &str) {
        let lives = |peers: &Arc<Vec<Peer>>| {
            peers
                .iter()
                .any(|peer| peer.replica.process_id == process_id)
        };
        let mut peers = self.0.clone();
        if peers.wait_for(|peers| !lives(peers)).await.is_err() {
            // This replica is stopping: which others are alive is no longer known.
            std::future::pending::<()>().await;
        }
    }

    /// The clients of all other replicas.
    pub async fn list_clients(&self) -> Answers {
        let peers = self.now();
        let answers = join_all(peers.iter().map(Peer::list_clients)).await;
        let mut all = Answers {
            answers: Vec::new(),
            unanswered: Vec::new(),
        };
        for (peer, answer) in peers.iter().zip(answers) {
            match answer {
                Some(answer) => all.answers.push(answer),
                None => all.unanswered.push(peer.replica.name.to_string()),
            }
        }
        all
    }
}

impl Peer {
    async fn list_clients(&self) -> Option<ListClientsResponse> {
        let mut client = self.client.clone()?;
        let name = &self.replica.name;
        let answer = async {
            let _place = self.lists.acquire().await.ok()?;
            let mut request = addressed(&self.replica, ListClientsRequest {});
            request.set_timeout(LIST_TIMEOUT);
            match client.list_clients(request).await {
                Ok(answer) => Some(answer.into_inner()),
                Err(status) => {
                    let cause = status.message();
                    if status.code() == Code::FailedPrecondition {
                        // This does not resolve itself.
                        tracing::warn!(replica = %name, cause, "cannot query another replica");
                    } else {
                        tracing::debug!(replica = %name, cause, "cannot get the list of clients of another replica");
                    }
                    None
                }
            }
        };
        tokio::time::timeout(LIST_TIMEOUT, answer)
            .await
            .ok()
            .flatten()
    }
}

/// The other replicas in the view; connections to those already known are kept.
fn next(registry: &Registry, before: &[Peer]) -> Vec<Peer> {
    let own = &registry.options().process_id;
    let replicas: Vec<Replica> = registry.read(|view| {
        let others = view.replicas().filter(|each| each.process_id != *own);
        others.cloned().collect()
    });
    let known: BTreeMap<(&str, &str), &Peer> = before
        .iter()
        .map(|peer| {
            let replica = &peer.replica;
            ((&*replica.process_id, &*replica.advertise), peer)
        })
        .collect();
    let peers = replicas.into_iter().enumerate().map(|(place, replica)| {
        let known = known.get(&(&*replica.process_id, &*replica.advertise));
        let (client, lists) = match known {
            Some(peer) => (peer.client.clone(), Arc::clone(&peer.lists)),
            None if place < MAX_PEERS => (
                connect(&replica),
                Arc::new(Semaphore::new(MAX_CONCURRENT_LISTS)),
            ),
            None => (None, Arc::new(Semaphore::new(MAX_CONCURRENT_LISTS))),
        };
        Peer {
            replica,
            client,
            lists,
        }
    });
    peers.collect()
}

/// The metadata of a request that names the replica it is for, by its process id.
pub(super) const FOR_PROCESS: &str = "heddle-asked-process";

/// A request for one replica only: its address may lead to another one (through a load balancer, for example), whose
/// answer would be taken for its own.
pub(super) fn addressed<T>(replica: &Replica, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(process) = replica.process_id.parse() {
        request.metadata_mut().insert(FOR_PROCESS, process);
    }
    request
}

/// Connects with the first request, and again with the next one if the connection broke.
fn connect(replica: &Replica) -> Option<ReplicaClient<Channel>> {
    let channel = endpoint(replica)?.connect_lazy();
    Some(ReplicaClient::new(channel).max_decoding_message_size(MAX_LIST_BYTES))
}

/// The endpoint of a replica, if it has an address.
pub(super) fn endpoint(replica: &Replica) -> Option<Endpoint> {
    if replica.advertise.is_empty() {
        return None;
    }
    let endpoint = Endpoint::from_shared(replica.advertise.clone());
    let endpoint = endpoint.inspect_err(|error| {
        tracing::warn!(replica = %replica.name, advertise = replica.advertise, %error,
            "another replica's address is invalid: its clients will be missing from lists");
    });
    let endpoint = endpoint
        .ok()?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    Some(endpoint)
}

async fn follow(
    registry: Registry,
    mut changes: ViewChanges,
    sender: Arc<watch::Sender<Arc<Vec<Peer>>>>,
) {
    loop {
        let now = next(&registry, &sender.borrow());
        sender.send_replace(Arc::new(now));
        while !changes.next().await.replicas {}
    }
}
