//! The connected clients: what each has, acknowledged and rejected, for the status, and a wait until all of them know
//! that an instance is removed. Streams never wait here.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{ClientState, Metrics, NodeInfo};
use crate::{names::InstanceKey, session::Removals, snapshot::Kind, store::Revision};

/// Most refused resources of a type that the status shows.
const MAX_REFUSED: usize = 20;
/// Most proxies without a stream that are remembered, for the status alone; those that left first are forgotten first.
const MAX_DEPARTED: usize = 10_000;

/// The connected clients. Clones share them.
#[derive(Clone, Default)]
pub struct Clients(Arc<Inner>);

#[derive(Default)]
struct Inner {
    connected: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// When the last stream of a proxy ended that has not reconnected to this replica; at most [`MAX_DEPARTED`].
    departed: Mutex<BTreeMap<String, Instant>>,
    last_id: AtomicU64,
    /// Incremented whenever a client acknowledged endpoints or left.
    progress: watch::Sender<u64>,
    metrics: Metrics,
}

/// One stream.
#[derive(Debug)]
pub struct Client {
    pub node: NodeInfo,
    /// The address of the peer.
    pub address: String,
    pub variant: &'static str,
    state: Mutex<ClientState>,
    /// Since when it has owed an answer without giving any.
    owes: Mutex<Option<Instant>>,
    /// Its process is stopping.
    draining: AtomicBool,
    /// Its stream has ended.
    gone: AtomicBool,
}

impl Client {
    /// Locked only for a short time; never across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, ClientState> {
        lock(&self.state)
    }

    /// Its process is stopping.
    pub(super) fn drains(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// A response was sent: the client owes an answer, from now on if it owed none before.
    pub(super) fn was_sent(&self, now: Instant) {
        lock(&self.owes).get_or_insert(now);
    }

    /// The client answered something: even if it owes more answers, it is not stuck.
    pub(super) fn has_answered(&self, now: Instant) {
        let owes = self.state().awaits_ack();
        *lock(&self.owes) = owes.then_some(now);
    }

    /// The client uses the service and has not acknowledged its state at this revision.
    fn is_behind(&self, service: &str, revision: u64) -> bool {
        let state = self.state();
        let acknowledged = state
            .subscription(Kind::Endpoint)
            .acknowledged_at(service, revision);
        acknowledged == Some(false) && !self.gone.load(Ordering::Relaxed)
    }
}

impl Clients {
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.0.connected).len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn join(
        &self,
        node: NodeInfo,
        address: String,
        variant: &'static str,
        state: ClientState,
    ) -> ConnectedClient {
        let id = self.0.last_id.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client {
            node,
            address,
            variant,
            state: Mutex::new(state),
            owes: Mutex::default(),
            draining: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        lock(&self.0.connected).insert(id, Arc::clone(&client));
        lock(&self.0.departed).remove(&client.node.id);
        ConnectedClient {
            id,
            client,
            clients: self.clone(),
        }
    }

    /// A client may have acknowledged more than before.
    pub(super) fn progressed(&self) {
        if self.0.progress.receiver_count() > 0 {
            self.0.progress.send_modify(|count| *count += 1);
        }
    }

    fn connected(&self) -> Vec<Arc<Client>> {
        lock(&self.0.connected).values().cloned().collect()
    }

    /// Every client, sorted by node id; streams of one node in the order in which they began.
    pub(super) fn sorted(&self) -> Vec<Arc<Client>> {
        let mut clients = self.connected();
        clients.sort_by(|a, b| a.node.id.cmp(&b.node.id));
        clients
    }

    /// As the status shows them, in the same order.
    #[must_use]
    pub fn statuses(&self) -> Vec<ClientStatus> {
        let clients = self.sorted();
        clients
            .iter()
            .map(|client| ClientStatus::of(client))
            .collect()
    }

    /// Proxies that had a stream here and have none now, and for how long.
    #[must_use]
    pub fn departed(&self) -> Vec<(String, Duration)> {
        let departed = lock(&self.0.departed);
        let gone = departed.iter();
        gone.map(|(id, at)| (id.clone(), at.elapsed())).collect()
    }

    fn depart(&self, client: &Client) {
        if client.node.role != "proxy" {
            return;
        }
        let id = &client.node.id;
        let has_another = lock(&self.0.connected)
            .values()
            .any(|other| other.node.id == *id);
        if has_another {
            return;
        }
        let mut departed = lock(&self.0.departed);
        departed.insert(id.clone(), Instant::now());
        if departed.len() > MAX_DEPARTED {
            let first = departed.iter().min_by_key(|(_, at)| **at);
            if let Some(first) = first.map(|(id, _)| id.clone()) {
                departed.remove(&first);
            }
        }
    }

    /// Checks one client at a time, so that a thousand acknowledgements cost a thousand checks. In the end it checks
    /// all again, for those that connected meanwhile.
    async fn all_acknowledge(&self, service: &str, revision: u64) {
        let mut progress = self.0.progress.subscribe();
        loop {
            let mut behind = self.behind(service, revision);
            if behind.is_empty() {
                return;
            }
            while let Some(client) = behind.pop() {
                while client.is_behind(service, revision) {
                    // The sender lives in `self`: it cannot fail.
                    let _ = progress.changed().await;
                }
            }
        }
    }

    /// The clients that use a service and have not acknowledged its state at a revision.
    fn behind(&self, service: &str, revision: u64) -> Vec<Arc<Client>> {
        let connected = self.connected();
        // A proxy's node id is unique: if it has two streams, the older one is dead and this was not noticed yet.
        let newest: HashMap<String, Arc<Client>> = connected
            .iter()
            .filter(|client| client.node.role == "proxy")
            .map(|client| (client.node.id.clone(), Arc::clone(client)))
            .collect();
        connected
            .into_iter()
            .filter(|client| {
                client.node.role != "proxy"
                    || newest
                        .get(&client.node.id)
                        .is_some_and(|newest| Arc::ptr_eq(newest, client))
            })
            .filter(|client| client.is_behind(service, revision))
            .collect()
    }
}

impl Removals for Clients {
    fn acknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        max_wait: Duration,
    ) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>> {
        let clients = self.clone();
        let service = instance.service.to_string();
        Box::pin(async move {
            let all = clients.all_acknowledge(&service, revision.0);
            if tokio::time::timeout(max_wait, all).await.is_ok() {
                return Vec::new();
            }
            let behind = clients.behind(&service, revision.0);
            let mut names: Vec<_> = behind.iter().map(|client| client.node.id.clone()).collect();
            names.sort_unstable();
            names.dedup();
            names
        })
    }
}

/// A stream's entry among the clients; dropping it removes the entry.
pub(super) struct ConnectedClient {
    pub(super) id: u64,
    pub(super) client: Arc<Client>,
    clients: Clients,
}

impl Drop for ConnectedClient {
    fn drop(&mut self) {
        lock(&self.clients.0.connected).remove(&self.id);
        self.clients.depart(&self.client);
        self.client.gone.store(true, Ordering::Relaxed);
        self.clients.progressed();
    }
}

/// One client as the status shows it.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    pub node_id: String,
    pub role: String,
    pub address: String,
    pub variant: &'static str,
    pub process_id: String,
    /// Its process is stopping.
    pub draining: bool,
    /// For how long it has owed an answer without giving any.
    pub owes_for: Option<Duration>,
    pub kinds: Vec<KindStatus>,
}

/// One type of a client's subscriptions.
#[derive(Clone, Debug)]
pub struct KindStatus {
    pub kind: Kind,
    pub acknowledged_version: String,
    pub sent_version: String,
    pub in_flight: bool,
    pub subscribed: usize,
    pub wildcard: bool,
    pub resources: usize,
    pub rejected_version: String,
    pub rejected_reason: String,
    /// The resources that the client rejected, sorted by name; the first 20.
    pub refused: Vec<RefusedStatus>,
}

/// A resource that a client rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedStatus {
    pub name: String,
    /// Empty: it rejected the removal of the resource.
    pub version: String,
    /// The reason that the client gave.
    pub reason: String,
}

impl ClientStatus {
    fn of(client: &Client) -> Self {
        let state = client.state();
        let kinds = Kind::ALL
            .into_iter()
            .filter_map(|kind| {
                let status = state.subscription(kind).status()?;
                let version = |mark: Option<&super::subscription::ResponseVersion>| {
                    mark.map(|mark| mark.version.clone()).unwrap_or_default()
                };
                let rejected = status.rejected.cloned();
                let (rejected_version, rejected_reason) = rejected
                    .map(|rejected| (rejected.version, rejected.reason))
                    .unwrap_or_default();
                Some(KindStatus {
                    kind,
                    acknowledged_version: version(status.acknowledged),
                    sent_version: version(status.sent),
                    in_flight: status.in_flight,
                    subscribed: status.subscribed,
                    wildcard: status.wildcard,
                    resources: status.resources,
                    rejected_version,
                    rejected_reason,
                    refused: status.refused(MAX_REFUSED),
                })
            })
            .collect();
        Self {
            node_id: client.node.id.clone(),
            role: client.node.role.clone(),
            address: client.address.clone(),
            variant: client.variant,
            process_id: client.node.process_id.clone(),
            draining: client.draining.load(Ordering::Relaxed),
            owes_for: lock(&client.owes)
                .filter(|_| state.awaits_ack())
                .map(|since| since.elapsed()),
            kinds,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
