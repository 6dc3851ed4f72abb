//! Maintains the records of services: removes those of services that had no instance for a long time, and writes
//! missing ones. Each transaction has the condition that the record has not changed.

use std::collections::BTreeSet;

use prost::Message as _;

use super::{election::FencingToken, now};
use crate::{
    names::{ServiceName, keys},
    registry::{
        core::{Registry, events::NewEvent},
        model::service,
    },
    store::{Compare, MAX_TXN_OPS, Op, Revision, StoreError},
};
mod idle;

use idle::Idle;

/// Services per transaction: each has a condition, and a deletion with an event or a write of its record.
const MAX_PER_TXN: usize = MAX_TXN_OPS / 4;

pub(super) async fn run(registry: &Registry, token: FencingToken) {
    let mut changes = registry.subscribe();
    let mut keeper = ServiceJob {
        idle: Idle::new(registry.options().idle.clone()),
        unrecorded: BTreeSet::new(),
        registry: registry.clone(),
        token,
    };
    let known: Vec<_> = registry.read(|view| view.services().cloned().collect());
    keeper.observe(&known);
    loop {
        keeper.forget().await;
        keeper.record().await;
        let due = async {
            match keeper.next() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            batch = changes.next() => {
                let services: Vec<_> = batch.services.into_iter().collect();
                keeper.observe(&services);
            }
            () = due => {}
        }
    }
}

struct ServiceJob {
    registry: Registry,
    token: FencingToken,
    idle: Idle,
    /// Services with instances but without a record: an older version wrote the store, or an instance joined while the
    /// service was being forgotten.
    unrecorded: BTreeSet<ServiceName>,
}

impl ServiceJob {
    fn observe(&mut self, services: &[ServiceName]) {
        let now = now();
        self.registry.read(|view| {
            for service in services {
                match view.empty_since_write(service) {
                    Some(_) => self.idle.on_empty(service, now),
                    None => self.idle.on_other(service),
                }
                let has_instances = view.instances(service).next().is_some();
                if has_instances && view.recorded(service).is_none() {
                    self.unrecorded.insert(service.clone());
                } else {
                    self.unrecorded.remove(service);
                }
            }
        });
    }

    fn next(&self) -> Option<std::time::Instant> {
        let retry = (!self.unrecorded.is_empty()).then(|| now() + idle::RETRY_PAUSE);
        [self.idle.next(), retry].into_iter().flatten().min()
    }

    async fn forget(&mut self) {
        let due = self.idle.due(now());
        for services in due.chunks(MAX_PER_TXN) {
            match forget(&self.registry, self.token, services).await {
                Ok(true) => self.observe(services),
                Ok(false) => tracing::info!(
                    "services without instances have changed while they were being forgotten"
                ),
                Err(error) => {
                    tracing::warn!(%error, "cannot forget services without instances; retrying");
                    return;
                }
            }
        }
    }

    async fn record(&mut self) {
        let missing: Vec<_> = self.unrecorded.iter().cloned().collect();
        for services in missing.chunks(MAX_PER_TXN) {
            match record(&self.registry, self.token, services).await {
                Ok(()) => self.observe(services),
                Err(error) => {
                    tracing::warn!(%error, "cannot write service records; retrying");
                    return;
                }
            }
        }
    }
}

/// True if the services are forgotten, false if one of them has changed.
async fn forget(
    registry: &Registry,
    token: FencingToken,
    services: &[ServiceName],
) -> Result<bool, StoreError> {
    let empty: Vec<(String, Revision)> = registry.read(|view| {
        let empty = |service| Some((keys::service(service), view.empty_since_write(service)?));
        services.iter().filter_map(empty).collect()
    });
    if empty.is_empty() {
        return Ok(true);
    }
    let compare = empty.iter().map(|(key, at)| Compare::unchanged(key, *at));
    let events: Vec<_> = empty.iter().map(|(key, _)| forgotten(key)).collect();
    let deletes = empty.iter().map(|(key, _)| Op::delete(key)).collect();
    let txn = registry.txn_of_leader(token, compare.collect(), deletes, &events);
    let succeeded = txn.await?;
    if succeeded {
        for (service, _) in &empty {
            let service = service.strip_prefix(keys::SERVICES);
            tracing::info!(
                event = "service-forgotten",
                service,
                "forgot a service without instances"
            );
        }
    }
    Ok(succeeded)
}

fn forgotten(key: &str) -> NewEvent {
    let service = key.strip_prefix(keys::SERVICES).unwrap_or(key);
    let cause =
        "it has had no instances for too long, or is the oldest of too many without instances";
    NewEvent::of_service("service-forgotten", service, cause)
}

async fn record(
    registry: &Registry,
    token: FencingToken,
    services: &[ServiceName],
) -> Result<(), StoreError> {
    let records: Vec<_> = registry.read(|view| {
        let missing = services
            .iter()
            .filter(|service| view.recorded(service).is_none());
        let record = |service| {
            let known = service::record_of(view.instances(service));
            (keys::service(service), known.record().encode_to_vec())
        };
        missing.map(record).collect()
    });
    if records.is_empty() {
        return Ok(());
    }
    let compare = records
        .iter()
        .map(|(key, _)| Compare::absent(key))
        .collect();
    let puts = records
        .into_iter()
        .map(|(key, record)| Op::put(&key, record));
    // If the condition fails, the view soon shows why, or the write is retried.
    let txn = registry.txn_of_leader(token, compare, puts.collect(), &[]);
    txn.await.map(drop)
}

#[cfg(test)]
mod tests;
