//! Writes and renews the record that shows that this replica serves, on a lease of its own, until the registry stops.
//! Names of replicas are unique: if another process has the name, this one waits as long as a dead process could have
//! it.

use std::time::Duration;

use heddle_proto::store::v1::ReplicaRecord;
use prost::Message as _;
use tokio::time::Instant;

use super::Membership;
use crate::{
    names::keys,
    registry::{
        core::{Registry, events::NewEvent},
        model::is_significant,
        options::RegistryError,
    },
    store::{Compare, KeyValue, LeaseId, Op, Revision, StoreError, Txn},
};

/// The kind of the event that a replica has left.
pub(in crate::registry) const LEFT: &str = "replica-left";
/// The longest time that a stopping replica waits for the store to end its lease.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The lease of this replica's record and, if it is the leader, of the leader's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) struct ReplicaLease {
    pub(in crate::registry) id: LeaseId,
    /// The revision at which the record was last written.
    pub(in crate::registry) at: Revision,
}

pub(super) struct Presence {
    membership: Membership,
    advertise: String,
    /// As published in the record.
    late_nodes: u32,
    xds_streams: u32,
    /// When the number of streams was last published.
    counted: Instant,
    renewed: Instant,
    /// Whether the conflict over the name was logged.
    conflict_logged: bool,
}

/// The result of an attempt to write the record.
enum Attempt {
    By(ReplicaLease),
    Occupied(ReplicaRecord),
    /// Another process changed the record first.
    Changed,
}

impl Presence {
    /// Writes the record. If another process has the name, waits as long as a dead process could have it.
    pub(super) async fn join(
        membership: &Membership,
        advertise: &str,
    ) -> Result<Self, RegistryError> {
        let presence = Self {
            membership: membership.clone(),
            advertise: advertise.to_owned(),
            late_nodes: 0,
            xds_streams: 0,
            counted: Instant::now(),
            renewed: Instant::now(),
            conflict_logged: false,
        };
        let registry = membership.registry();
        let ttl = registry.options().lease_ttl;
        let deadline = Instant::now() + ttl + ttl / 4;
        let mut changes = registry.subscribe();
        loop {
            match presence.take(true).await? {
                Attempt::By(lease) => {
                    membership.set_lease(Some(lease));
                    return Ok(presence);
                }
                Attempt::Changed => {}
                Attempt::Occupied(other) => {
                    let name = &registry.options().replica;
                    tracing::info!(%name, "waiting until the lease of an earlier process with \
                        this replica's name expires");
                    let change = tokio::time::timeout_at(deadline, changes.of_replicas());
                    if change.await.is_err() {
                        return Err(RegistryError::ReplicaTaken {
                            name: name.clone(),
                            advertise: other.advertise,
                        });
                    }
                }
            }
        }
    }

    fn registry(&self) -> &Registry {
        self.membership.registry()
    }

    fn record(&self, late_nodes: u32, xds_streams: u32) -> ReplicaRecord {
        let options = self.registry().options();
        ReplicaRecord {
            name: options.replica.clone(),
            process_id: options.process_id.clone(),
            advertise: self.advertise.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            late_nodes,
            xds_streams,
        }
    }

    /// Whether the record's process is certainly dead: no other process can have the store open, or it served at this
    /// replica's address.
    fn is_of_a_dead_one(&self, held: &ReplicaRecord) -> bool {
        let there = &held.advertise;
        !self.registry().store().is_shared() || (!there.is_empty() && *there == self.advertise)
    }

    /// Takes the name if it is free or belongs to this process; if `joins`, also if its process is dead.
    async fn take(&self, joins: bool) -> Result<Attempt, StoreError> {
        let (registry, store) = (self.registry(), self.registry().store());
        let options = registry.options();
        let key = keys::replica(&options.replica);
        let found = store.get(&key).await?;
        let record = self.record(self.late_nodes, self.xds_streams);
        if let Some(found) = &found {
            let held = ReplicaRecord::decode(found.value.clone()).unwrap_or_default();
            let dead = joins && self.is_of_a_dead_one(&held);
            if held.process_id != record.process_id && !dead {
                return Ok(Attempt::Occupied(held));
            }
        }
        let at = found
            .as_ref()
            .map_or(Revision(0), |found| found.mod_revision);
        let lease = store.grant(options.lease_ttl).await?;
        let txn = Txn {
            compare: vec![Compare::unchanged(&key, at)],
            then: vec![Op::put_leased(&key, record.encode_to_vec(), lease)],
            ..Txn::default()
        };
        let joined = NewEvent::of_mesh(
            "replica-joined",
            &format!("replica {} serves at {}", record.name, record.advertise),
        );
        let result = registry.txn_with_events(txn, &[joined]).await;
        let succeeded = result.as_ref().is_ok_and(|result| result.succeeded);
        // Revoking the old lease also ends the duties of the process that had it.
        let old = found.and_then(|KeyValue { lease, .. }| lease);
        let unused = if succeeded { old } else { Some(lease) };
        if let Some(unused) = unused {
            registry.revoke_unused(unused).await;
        }
        let at = result?.revision;
        Ok(if succeeded {
            Attempt::By(ReplicaLease { id: lease, at })
        } else {
            Attempt::Changed
        })
    }

    /// Maintains the record until the registry stops, then removes it.
    pub(super) async fn run(mut self) {
        let options = self.registry().options().clone();
        let interval = options.renew_interval / 3;
        loop {
            tokio::select! {
                biased;
                () = options.stop.cancelled() => break,
                () = tokio::time::sleep(interval) => {}
            }
            self.check_record();
            if self.renewed.elapsed() + interval > options.renew_interval {
                self.renew().await;
            }
            self.publish_figures().await;
        }
        let lease = self.membership.lease();
        self.membership.set_lease(None);
        if let Some(lease) = lease {
            match tokio::time::timeout(LEAVE_TIMEOUT, self.leave(lease)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "cannot remove this replica's record");
                }
                Err(_) => {
                    tracing::warn!(
                        "the store did not answer within {LEAVE_TIMEOUT:?}: this replica's record stays \
                         until its lease expires"
                    );
                }
            }
        }
    }

    /// Removes the record, with its event, and ends the lease, which also removes the leader's key.
    async fn leave(&self, lease: ReplicaLease) -> Result<(), StoreError> {
        let (registry, options) = (self.registry(), self.registry().options());
        let key = keys::replica(&options.replica);
        let txn = Txn {
            compare: vec![Compare::unchanged(&key, lease.at)],
            then: vec![Op::delete(&key)],
            ..Txn::default()
        };
        let event = left_event(&options.replica, &options.process_id, "it stopped");
        let removed = registry.txn_with_events(txn, &[event]).await;
        registry.store().revoke(lease.id).await?;
        removed.map(drop)
    }

    /// Detects a record that was deleted or overwritten: renewing the lease would not notice it.
    fn check_record(&self) {
        let Some(lease) = self.membership.lease() else {
            return;
        };
        let options = self.registry().options();
        let missing = self.registry().read(|view| {
            let here = view.replica(&options.replica);
            view.revision() >= lease.at
                && here.is_none_or(|it| *it.process_id != *options.process_id)
        });
        if missing {
            tracing::warn!(
                "this replica's record is missing from the store or belongs to another process; \
                 joining again"
            );
            self.membership.set_lease(None);
        }
    }

    async fn renew(&mut self) {
        self.renewed = Instant::now();
        if let Some(lease) = self.membership.lease() {
            let result = self.registry().store().keep_alive(lease.id).await;
            self.registry().on_store_result(&result);
            match result {
                Ok(()) => return,
                Err(StoreError::LeaseNotFound(_)) => {
                    tracing::warn!("this replica's lease expired; joining again");
                    self.membership.set_lease(None);
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot renew this replica's lease; retrying");
                    return;
                }
            }
        }
        // Without `joins`: a later process at this address may have the name, and the two would take it from each other
        // forever.
        let taken = self.take(false).await;
        self.registry().on_store_result(&taken);
        match taken {
            Ok(Attempt::By(lease)) => {
                self.conflict_logged = false;
                self.membership.set_lease(Some(lease));
            }
            Ok(Attempt::Occupied(other)) if !self.conflict_logged => {
                self.conflict_logged = true;
                let (name, there) = (&self.registry().options().replica, &other.advertise);
                tracing::error!(
                    %name, there,
                    "another replica uses this one's name: give each its own --replica name"
                );
            }
            Ok(Attempt::Occupied(_) | Attempt::Changed) => {}
            Err(error) => tracing::debug!(%error, "cannot write this replica's record; retrying"),
        }
    }

    /// Publishes the number of late nodes, because only the replica with a node's session notices a missed heartbeat
    /// but the leader must know it; and the number of streams, so that each replica can see which has too many. The
    /// latter is published at most once per renew interval.
    async fn publish_figures(&mut self) {
        let late_nodes = u32::try_from(self.registry().late_here()).unwrap_or(u32::MAX);
        let Some(lease) = self.membership.lease() else {
            return;
        };
        let streams = self.membership.streams_here();
        let due = self.counted.elapsed() >= self.registry().options().renew_interval;
        let published = usize::try_from(self.xds_streams).unwrap_or(usize::MAX);
        if late_nodes == self.late_nodes && !(due && is_significant(published, streams)) {
            return;
        }
        let xds_streams = u32::try_from(streams).unwrap_or(u32::MAX);
        let key = keys::replica(&self.registry().options().replica);
        let record = self.record(late_nodes, xds_streams).encode_to_vec();
        let txn = Txn {
            compare: vec![Compare::unchanged(&key, lease.at)],
            then: vec![Op::put_leased(&key, record, lease.id)],
            ..Txn::default()
        };
        let result = self.registry().store().txn(txn).await;
        self.registry().on_store_result(&result);
        match result {
            Ok(done) if done.succeeded => {
                self.late_nodes = late_nodes;
                self.xds_streams = xds_streams;
                self.counted = Instant::now();
                let at = done.revision;
                self.membership
                    .set_lease(Some(ReplicaLease { at, ..lease }));
            }
            // The next renewal finds out what happened to the record.
            Ok(_) => self.membership.set_lease(None),
            Err(error) => {
                tracing::debug!(%error, "cannot publish the numbers of late nodes and streams; retrying");
            }
        }
    }
}

/// The common start of the causes of events that report the end of one process of a replica.
pub(in crate::registry) fn left_cause(name: &str, process_id: &str) -> String {
    format!("replica {name} (process {process_id}) has gone: ")
}

/// The event that a replica no longer serves.
pub(in crate::registry) fn left_event(name: &str, process_id: &str, why: &str) -> NewEvent {
    let cause = left_cause(name, process_id) + why;
    NewEvent::of_mesh(LEFT, &cause)
}
