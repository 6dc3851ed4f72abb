//! What one session may write: it holds the lease of its node. In come the node's identity, its full set of
//! instances and its changes; out go durable revisions. Every write is under the condition that the lease is still
//! this session's, so that no older process, no older stream and no node that was swept can overwrite a newer state.

use std::{collections::BTreeMap, net::SocketAddr, pin::pin, sync::Arc};

use futures_util::future::try_join_all;
use heddle_proto::{
    control::v1::LocalInstance,
    store::v1::{AliveRecord, InstanceRecord, NodeRecord},
};
use prost::Message as _;

use super::{InstanceKey, KnownService, Registry, ServiceName, epoch, service};
use crate::store::{Compare, KeyValue, LeaseId, MAX_TXN_OPS, Op, Revision, StoreError, Txn, keys};

/// Writes in one transaction: each may bring the record of its service along.
const WRITES_PER_TXN: usize = MAX_TXN_OPS / 2;
/// Attempts at a claim that others keep disturbing.
const CLAIM_ATTEMPTS: usize = 8;

/// Who opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub name: String,
    pub process_id: String,
    /// 0 for a new process; else the epoch that this process was given.
    pub epoch: u64,
    pub advertise: SocketAddr,
    pub region: String,
    pub zone: String,
    pub version: String,
    pub loopback: bool,
}

/// One change of a node's instances.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeWrite {
    Put(InstanceKey, Box<LocalInstance>),
    Remove(InstanceKey),
}

/// One operation on an instance.
struct Write {
    op: Op,
    /// What its service is known by from now on, if that is news.
    record: Option<(ServiceName, KnownService)>,
}

impl Write {
    fn delete(key: Arc<str>) -> Self {
        Self {
            op: Op::Delete { key },
            record: None,
        }
    }
}

/// Why a session may not write (any more).
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LeaseError {
    #[error(
        "node {node} is held by process {process_id} (epoch {epoch}): two nodes with one name, or an older \
         process that came back; give each node its own --node name"
    )]
    Superseded {
        node: String,
        process_id: String,
        epoch: u64,
    },
    #[error("the lease of node {node} lapsed; open a new session with the full set")]
    Lapsed { node: String },
    #[error("a newer session of the same process holds node {node}")]
    Replaced { node: String },
    #[error("others keep claiming node {node} at the same time; try again")]
    Contended { node: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The right to write one node's state. Dropping it leaves the lease to run out.
pub struct NodeLease {
    registry: Registry,
    node: String,
    process_id: String,
    epoch: u64,
    lease: LeaseId,
    /// When `alive/<node>` was written by this session.
    session: Revision,
    last: Revision,
}

impl NodeLease {
    /// Takes the node over, or resumes it if it was this process's.
    pub async fn claim(registry: &Registry, identity: &NodeIdentity) -> Result<Self, LeaseError> {
        for _ in 0..CLAIM_ATTEMPTS {
            if let Some(lease) = Self::try_claim(registry, identity).await? {
                return Ok(lease);
            }
        }
        Err(LeaseError::Contended {
            node: identity.name.clone(),
        })
    }

    async fn try_claim(
        registry: &Registry,
        identity: &NodeIdentity,
    ) -> Result<Option<Self>, LeaseError> {
        let store = registry.store();
        let (node_key, alive_key) = (keys::node(&identity.name), keys::alive(&identity.name));
        let node = store.get(&node_key).await?;
        let alive = store.get(&alive_key).await?;
        let held = node
            .as_ref()
            .and_then(|node| NodeRecord::decode(node.value.clone()).ok());
        let record = epoch::claim(held.as_ref(), alive.is_some(), identity)?;
        let at =
            |item: &Option<KeyValue>| item.as_ref().map_or(Revision(0), |item| item.mod_revision);
        let compare = vec![
            Compare::unchanged(&node_key, at(&node)),
            Compare::unchanged(&alive_key, at(&alive)),
        ];
        let lease = store.grant(registry.options().lease_ttl).await?;
        let here = AliveRecord {
            epoch: record.epoch,
            process_id: record.process_id.clone(),
            replica: registry.options().replica.clone(),
        };
        let mut then = vec![Op::put_leased(&alive_key, here.encode_to_vec(), lease)];
        if held.as_ref() != Some(&record) {
            then.push(Op::put(&node_key, record.encode_to_vec()));
        }
        let result = store
            .txn(Txn {
                compare,
                then,
                ..Txn::default()
            })
            .await?;
        let unused = if result.succeeded {
            alive.and_then(|alive| alive.lease)
        } else {
            Some(lease)
        };
        if let Some(unused) = unused
            && let Err(error) = store.revoke(unused).await
        {
            // It runs out by itself; no key hangs on it.
            tracing::debug!(%error, "an unused lease was not revoked");
        }
        if result.succeeded {
            registry.on_beat(&record.name, now());
        }
        Ok(result.succeeded.then(|| Self {
            registry: registry.clone(),
            node: record.name,
            process_id: record.process_id,
            epoch: record.epoch,
            lease,
            session: result.revision,
            last: result.revision,
        }))
    }

    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The revision that names this session: `Node::session` while it lasts.
    #[must_use]
    pub fn session(&self) -> Revision {
        self.session
    }

    /// The newest revision that this session has written.
    #[must_use]
    pub fn last(&self) -> Revision {
        self.last
    }

    /// Makes the node have exactly these instances. What is there already is not written again: a session that
    /// resumes is no change for anybody. New ones come before old ones go.
    pub async fn replace_all(
        &mut self,
        instances: Vec<(InstanceKey, LocalInstance)>,
    ) -> Result<Revision, LeaseError> {
        let prefix = keys::instances_of(&self.node);
        let found = self.registry.store().range(&prefix, None).await?;
        let mut held: BTreeMap<_, _> = found
            .items
            .into_iter()
            .map(|item| {
                (
                    item.key,
                    InstanceRecord::decode(item.value)
                        .ok()
                        .and_then(|it| it.local),
                )
            })
            .collect();
        let mut puts = BTreeMap::new();
        for (key, local) in instances {
            let name = keys::instance(&key);
            if held.remove(name.as_str()).flatten().as_ref() != Some(&local) {
                puts.insert(name.clone(), self.put(&key, &name, local));
            }
        }
        self.write(puts.into_values().collect()).await?;
        self.write(held.into_keys().map(Write::delete).collect())
            .await
    }

    /// Writes changes; of several to one instance the last one counts. Together if one transaction holds them, else
    /// what comes before what goes.
    pub async fn change(&mut self, writes: Vec<NodeWrite>) -> Result<Revision, LeaseError> {
        let mut ops = BTreeMap::new();
        for write in writes {
            let (name, op) = match write {
                NodeWrite::Put(key, local) => {
                    let name = keys::instance(&key);
                    let op = self.put(&key, &name, *local);
                    (name, op)
                }
                NodeWrite::Remove(key) => {
                    let name = keys::instance(&key);
                    let op = Write::delete(name.as_str().into());
                    (name, op)
                }
            };
            ops.insert(name, op);
        }
        let writes: Vec<Write> = ops.into_values().collect();
        if writes.len() <= WRITES_PER_TXN {
            return self.write(writes).await;
        }
        let is_put = |write: &Write| matches!(write.op, Op::Put { .. });
        let (puts, removals) = writes.into_iter().partition(is_put);
        self.write(puts).await?;
        self.write(removals).await
    }

    /// The node lives.
    pub async fn beat(&self) -> Result<(), LeaseError> {
        match self.registry.store().keep_alive(self.lease).await {
            Ok(()) => {
                self.registry.on_beat(&self.node, now());
                Ok(())
            }
            Err(StoreError::LeaseNotFound(_)) => Err(self.why_lost().await?),
            Err(error) => Err(error.into()),
        }
    }

    /// The node goes for good: its instances leave at once.
    pub async fn leave(&mut self) -> Result<Revision, LeaseError> {
        self.replace_all(Vec::new()).await?;
        match self.registry.store().revoke(self.lease).await {
            Ok(()) | Err(StoreError::LeaseNotFound(_)) => Ok(self.last),
            Err(error) => Err(error.into()),
        }
    }

    fn put(&self, key: &InstanceKey, name: &str, local: LocalInstance) -> Write {
        let read = |view: &_| service::record_for(view, key, &local);
        let record = self.registry.read(read);
        let instance = InstanceRecord {
            node: key.node.to_string(),
            epoch: self.epoch,
            local: Some(local),
        };
        Write {
            op: Op::put(name, instance.encode_to_vec()),
            record: record.map(|record| (key.service.clone(), record)),
        }
    }

    /// Writes operations on different keys, as many transactions as it needs: an engine bounds their size.
    async fn write(&mut self, writes: Vec<Write>) -> Result<Revision, LeaseError> {
        let alive = keys::alive(&self.node);
        let store = self.registry.store();
        let txns = transactions(writes).into_iter().map(|then| {
            let compare = vec![Compare::unchanged(&alive, self.session)];
            store.txn(Txn {
                compare,
                then,
                ..Txn::default()
            })
        });
        let results = self.kept_during(try_join_all(txns)).await?;
        if results.iter().any(|result| !result.succeeded) {
            return Err(self.why_lost().await?);
        }
        self.last = results
            .iter()
            .map(|result| result.revision)
            .fold(self.last, Revision::max);
        Ok(self.last)
    }

    /// Waits for the store, and keeps the lease meanwhile: the node's beats wait behind its write, and it is not the
    /// node that is late.
    async fn kept_during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let every = self.registry.options().renew_interval;
        loop {
            if let Ok(done) = tokio::time::timeout(every, &mut work).await {
                return done;
            }
            // If the lease has gone the writes say so.
            if self.registry.store().keep_alive(self.lease).await.is_ok() {
                self.registry.on_beat(&self.node, now());
            }
        }
    }

    async fn why_lost(&self) -> Result<LeaseError, StoreError> {
        let store = self.registry.store();
        let node = self.node.clone();
        let found = store.get(&keys::node(&node)).await?;
        let record = found.and_then(|found| NodeRecord::decode(found.value).ok());
        if let Some(record) = record
            && (record.epoch, &record.process_id) != (self.epoch, &self.process_id)
        {
            let NodeRecord {
                process_id, epoch, ..
            } = record;
            return Ok(LeaseError::Superseded {
                node,
                process_id,
                epoch,
            });
        }
        match store.get(&keys::alive(&node)).await? {
            Some(_) => Ok(LeaseError::Replaced { node }),
            None => Ok(LeaseError::Lapsed { node }),
        }
    }
}

/// A service's record goes with the first of its instances, and again only if a later one says more.
fn transactions(writes: Vec<Write>) -> Vec<Vec<Op>> {
    let mut written: BTreeMap<ServiceName, KnownService> = BTreeMap::new();
    let mut transactions = Vec::new();
    let mut writes = writes.into_iter().peekable();
    while writes.peek().is_some() {
        let mut records = BTreeMap::new();
        let mut ops = Vec::new();
        for Write { op, record } in writes.by_ref().take(WRITES_PER_TXN) {
            ops.push(op);
            let Some((service, told)) = record else {
                continue;
            };
            let known = written
                .get(&service)
                .map(|known| known.followed_by(told.clone()));
            let known = known.unwrap_or(told);
            if written.get(&service) != Some(&known) {
                records.insert(keys::service(&service), known.record());
                written.insert(service, known);
            }
        }
        let records = records.into_iter();
        ops.extend(records.map(|(key, record)| Op::put(&key, record.encode_to_vec())));
        transactions.push(ops);
    }
    transactions
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
