//! The lease of a node, with which one session writes the node's instances. Every write has the condition that the
//! lease still belongs to this session, so that no older process, older stream or expired node can overwrite newer
//! state.

use std::{collections::BTreeMap, time::Duration};

use heddle_proto::{
    control::v1::LocalInstance,
    registry::v1::Health,
    store::v1::{InstanceRecord, NodeRecord},
};
use prost::Message as _;
use tokio::time::Instant;

use super::core::{Registry, events::NewEvent, instance_events::Change};
use crate::{
    names::{InstanceKey, ServiceName, keys},
    store::{LeaseId, Op, Revision, StoreError},
};

mod batch;
mod claim;
mod clash;
mod epoch;
pub(super) mod epoch_floor;
mod error;
mod paths;
mod service_record;
mod write;

use batch::{WRITES_PER_TXN, Write};
pub use error::LeaseError;

/// One change of a node's instances.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeWrite {
    Put(InstanceKey, Box<LocalInstance>),
    /// With the cause, if the instance did not request it.
    Remove(InstanceKey, Option<String>),
}

/// The effect of one write of an instance, applied after it is committed.
struct Step {
    /// None if the instance is removed.
    health: Option<Health>,
    event: Option<(Change, String)>,
}

/// The cause in an event about a registered instance.
fn cause_of(local: &LocalInstance) -> String {
    let instance = local.instance.as_ref();
    let address = instance.map_or("", |it| it.address.as_str());
    let version = match instance.map_or("", |it| it.version.as_str()) {
        "" => String::new(),
        version => format!("version {version} "),
    };
    match (local.health(), local.health_reason.as_str()) {
        (Health::Unhealthy, "") => format!("{version}at {address}, unhealthy"),
        (Health::Unhealthy, reason) => format!("{version}at {address}, unhealthy: {reason}"),
        _ => format!("{version}at {address}"),
    }
}

/// The instances that a node reports as removed, each with the cause, or none if the instance requested it.
pub type RemovalCauses = BTreeMap<InstanceKey, Option<String>>;

/// The right to write one node's state. If it is dropped, the lease expires.
#[derive(Clone)]
pub struct NodeLease {
    registry: Registry,
    node: String,
    process_id: String,
    epoch: u64,
    attempt: u64,
    /// Whether this process already had the node when it claimed it.
    resumed: bool,
    lease: LeaseId,
    /// The revision at which this session wrote `alive/<node>`.
    session: Revision,
    last: Revision,
    /// When the lease was last renewed.
    renewed: Instant,
    /// The health of the node's instances as this session last wrote them, to decide which events a write needs.
    written: BTreeMap<InstanceKey, Health>,
}

impl NodeLease {
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The revision that identifies this session; equal to `Node::session` as long as the session lasts.
    #[must_use]
    pub fn session(&self) -> Revision {
        self.session
    }

    /// The newest revision that this session has written.
    #[must_use]
    pub fn last(&self) -> Revision {
        self.last
    }

    /// Replaces the node's instances with exactly these. Unchanged ones are not written again: a session that resumes
    /// changes nothing for others. New instances are written before missing ones are removed. A missing instance gets
    /// an `instance-expired` event even if `gone` does not contain it.
    pub async fn resume(
        &mut self,
        instances: Vec<(InstanceKey, LocalInstance)>,
        gone: &RemovalCauses,
    ) -> Result<Revision, LeaseError> {
        let unknown = self.why_missing();
        let why = |key: &InstanceKey| match gone.get(key) {
            Some(reported) => reported.clone(),
            None => Some(unknown.clone()),
        };
        self.replace(instances, why, true).await
    }

    /// The cause for an instance that is missing and that the node does not report as removed.
    fn why_missing(&self) -> String {
        if self.resumed {
            return "missing from its node's list when the session was reopened; the reason is \
                unknown"
                .to_owned();
        }
        let (process, epoch) = (&self.process_id, self.epoch);
        format!("missing from the list of its node's new process {process} (epoch {epoch})")
    }

    async fn replace(
        &mut self,
        instances: Vec<(InstanceKey, LocalInstance)>,
        why: impl Fn(&InstanceKey) -> Option<String>,
        tells_left: bool,
    ) -> Result<Revision, LeaseError> {
        let prefix = keys::instances_of(&self.node);
        let found = self.registry.store().range(&prefix, None).await?;
        let local = |value| InstanceRecord::decode(value).ok().and_then(|it| it.local);
        // Other keys belong to another mesh whose prefix ends with this mesh's folder of instances.
        let mut held: BTreeMap<_, (InstanceKey, Option<LocalInstance>)> = found
            .items
            .into_iter()
            .filter_map(|item| match keys::parse(&item.key)? {
                keys::Key::Instance(key) => Some((item.key, (key, local(item.value)))),
                _ => None,
            })
            .collect();
        self.written = held
            .values()
            .filter_map(|(key, local)| Some((key.clone(), local.as_ref()?.health())))
            .collect();
        let is_news = |(key, local): &(InstanceKey, LocalInstance)| {
            let held = held.remove(keys::instance(key).as_str());
            held.and_then(|(_, local)| local).as_ref() != Some(local)
        };
        let news: Vec<_> = instances.into_iter().filter(is_news).collect();
        let joining = news.iter().map(|(key, local)| (&key.service, local));
        self.claim_paths(joining).await?;
        let (mut puts, mut steps) = (BTreeMap::new(), BTreeMap::new());
        for (key, local) in news {
            let name = keys::instance(&key);
            steps.insert(key.clone(), self.put_step(&key, &local));
            puts.insert(name.clone(), self.put(&key, &name, local));
        }
        self.write(puts.into_values().collect()).await?;
        let mut deletes = Vec::new();
        for (key, _) in held.into_values() {
            let cause = why(&key);
            let on_request = cause.is_none() && tells_left;
            steps.insert(key.clone(), self.removal_step(&key, on_request));
            deletes.push(Write::delete(&key, cause));
        }
        let revision = self.write(deletes).await?;
        self.take_steps(steps);
        Ok(revision)
    }

    /// The effect of writing an instance: an event, if it is new or its health changes.
    fn put_step(&self, key: &InstanceKey, local: &LocalInstance) -> Step {
        let health = local.health();
        let change = Change::of(self.written.get(key).copied(), health);
        Step {
            health: Some(health),
            event: change.map(|change| (change, cause_of(local))),
        }
    }

    /// The effect of removing an instance. If it did not request that, its event is part of the transaction.
    fn removal_step(&self, key: &InstanceKey, on_request: bool) -> Step {
        let leaves = on_request && self.written.contains_key(key);
        Step {
            health: None,
            event: leaves.then(|| (Change::Left, "it deregistered".to_owned())),
        }
    }

    /// Applies the effects of committed writes.
    fn take_steps(&mut self, steps: BTreeMap<InstanceKey, Step>) {
        for (key, Step { health, event }) in steps {
            if let Some((change, cause)) = event {
                self.registry.instance_events().add(change, &key, cause);
            }
            match health {
                Some(health) => self.written.insert(key, health),
                None => self.written.remove(&key),
            };
        }
    }

    /// Replaces the node's instances without reporting any as removed.
    #[cfg(test)]
    pub(crate) async fn replace_all(
        &mut self,
        instances: Vec<(InstanceKey, LocalInstance)>,
    ) -> Result<Revision, LeaseError> {
        self.resume(instances, &RemovalCauses::new()).await
    }

    /// Writes changes. If several concern one instance, the last one counts. All are written in one transaction if they
    /// fit, otherwise puts are written before removals.
    pub async fn change(&mut self, writes: Vec<NodeWrite>) -> Result<Revision, LeaseError> {
        let joining = writes.iter().filter_map(|write| match write {
            NodeWrite::Put(key, local) => Some((&key.service, &**local)),
            NodeWrite::Remove(..) => None,
        });
        self.claim_paths(joining).await?;
        let (mut ops, mut steps) = (BTreeMap::new(), BTreeMap::new());
        for write in writes {
            let (key, op, step) = match write {
                NodeWrite::Put(key, local) => {
                    let name = keys::instance(&key);
                    let step = self.put_step(&key, &local);
                    let op = self.put(&key, &name, *local);
                    (key, op, step)
                }
                NodeWrite::Remove(key, cause) => {
                    let step = self.removal_step(&key, cause.is_none());
                    let op = Write::delete(&key, cause);
                    (key, op, step)
                }
            };
            ops.insert(keys::instance(&key), op);
            steps.insert(key, step);
        }
        let revision = self.write_all(ops.into_values().collect()).await?;
        self.take_steps(steps);
        Ok(revision)
    }

    async fn write_all(&mut self, writes: Vec<Write>) -> Result<Revision, LeaseError> {
        if writes.len() <= WRITES_PER_TXN {
            return self.write(writes).await;
        }
        let is_put = |write: &Write| matches!(write.op, Op::Put { .. });
        let (puts, removals) = writes.into_iter().partition(is_put);
        self.write(puts).await?;
        self.write(removals).await
    }

    /// Renews the lease. While the store does not answer, the session continues: the node has lost nothing, and other
    /// replicas may not reach the store either. But if there are other replicas, only this one may be cut off; then the
    /// session ends with [`LeaseError::Cut`] early enough for the node to move before its lease expires.
    pub async fn beat(&mut self) -> Result<(), LeaseError> {
        let result = self.renew().await;
        self.registry.on_store_result(&result);
        match result {
            Ok(()) => Ok(()),
            Err(StoreError::LeaseNotFound(_)) => Err(self.why_lost().await?),
            Err(StoreError::Unavailable { .. }) => self.wait_for_store(),
            Err(error) => Err(error.into()),
        }
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        let begun = Instant::now();
        self.registry.store().keep_alive(self.lease).await?;
        self.renewed = begun;
        self.registry.on_beat(&self.node);
        Ok(())
    }

    fn wait_for_store(&self) -> Result<(), LeaseError> {
        let ttl = self.registry.options().lease_ttl;
        let has_others = self.registry.read(|view| view.replicas().nth(1).is_some());
        if has_others && self.renewed.elapsed() > ttl * 3 / 5 {
            let node = self.node.clone();
            return Err(LeaseError::Cut { node });
        }
        Ok(())
    }

    /// The node leaves permanently: its instances are removed at once.
    pub async fn leave(&mut self) -> Result<Revision, LeaseError> {
        self.end("left the mesh for good").await
    }

    async fn end(&mut self, what: &str) -> Result<Revision, LeaseError> {
        // The node's own event reports that its instances are removed.
        self.replace(Vec::new(), |_| None, false).await?;
        let mut then = vec![Op::delete(&keys::alive(&self.node))];
        then.extend(self.left_record().await?);
        self.write_left(then, what).await?;
        match self.registry.store().revoke(self.lease).await {
            Ok(()) | Err(StoreError::LeaseNotFound(_)) => Ok(self.last),
            Err(error) => Err(error.into()),
        }
    }

    /// The node's process stops, for a restart or permanently: its instances stay until [`NodeLease::end_if_not_back`]
    /// or until its lease, which is not renewed any more, expires.
    pub async fn stopping(&mut self) -> Result<Revision, LeaseError> {
        let then = self.left_record().await?.into_iter().collect();
        let grace = self.grace();
        let what =
            format!("is stopping; its instances are removed unless it is back within {grace:?}");
        self.write_left(then, &what).await?;
        Ok(self.last)
    }

    /// The time in which a successor takes a node over whose process is stopping.
    fn grace(&self) -> Duration {
        self.registry.options().lease_ttl * 3 / 10
    }

    /// After [`NodeLease::stopping`]: ends the lease early, because nobody can reach a node without a proxy. Does
    /// nothing if a successor has taken the node over meanwhile. If this replica ends before, the lease expires.
    pub fn end_if_not_back(&self) -> impl Future<Output = Result<Revision, LeaseError>> + use<> {
        let mut lease = self.clone();
        async move {
            tokio::time::sleep(lease.grace()).await;
            let what = "has stopped and has not come back; its instances are removed";
            lease.end(what).await
        }
    }

    async fn write_left(&mut self, then: Vec<Op>, what: &str) -> Result<(), LeaseError> {
        let txn = self.fenced(then);
        let (process, epoch) = (&self.process_id, self.epoch);
        let cause = format!("process {process} (epoch {epoch}) {what}");
        let event = NewEvent::of_node("node-left", &self.node, &cause);
        let event = self
            .registry
            .read(|view| event.with_services(view.services_on(&self.node)));
        let result = self.registry.txn_with_events(txn, &[event]).await?;
        if !result.succeeded {
            return Err(self.why_lost().await?);
        }
        self.last = self.last.max(result.revision);
        Ok(())
    }

    /// The write that marks the node's record as left, so that its lapse does not count as a failure. While this
    /// session has the node, nobody else writes the record.
    async fn left_record(&self) -> Result<Option<Op>, StoreError> {
        let key = keys::node(&self.node);
        let found = self.registry.store().get(&key).await?;
        let record = found.and_then(|found| NodeRecord::decode(found.value).ok());
        Ok(record.map(|record| {
            let left = NodeRecord {
                left: true,
                ..record
            };
            Op::put(&key, left.encode_to_vec())
        }))
    }

    /// Claims the paths of the proto services of instances before these join, so that a served path always has an
    /// owner. A claim is written once per service and proto service; instances that join later find it in the store.
    async fn claim_paths<'a>(
        &mut self,
        joining: impl Iterator<Item = (&'a ServiceName, &'a LocalInstance)>,
    ) -> Result<(), LeaseError> {
        let options = &self.registry.options().claims;
        let claims_to_write = self
            .registry
            .read(|view| paths::claims_to_write(view, options, joining));
        self.registry.on_refused_claims(claims_to_write.refused);
        for round in claims_to_write.rounds {
            self.write(round.into_iter().map(Write::of).collect())
                .await?;
        }
        Ok(())
    }

    fn put(&self, key: &InstanceKey, name: &str, local: LocalInstance) -> Write {
        let read = |view: &_| service_record::record_for(view, key, &local);
        let record = self.registry.read(read);
        let instance = InstanceRecord {
            node: key.node.to_string(),
            epoch: self.epoch,
            local: Some(local),
        };
        Write {
            record: record.map(|record| (key.service.clone(), record)),
            ..Write::of(Op::put(name, instance.encode_to_vec()))
        }
    }
}

#[cfg(test)]
mod tests;
