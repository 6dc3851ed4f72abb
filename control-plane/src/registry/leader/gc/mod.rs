//! Removes what is not needed: descriptors that no service refers to, records of nodes that have been gone for a long
//! time, and events beyond the limit. Descriptors are marked for deletion first, so that a node that needs them can
//! upload them again.

use std::sync::Arc;

use super::{election::FencingToken, now};
use crate::{
    names::keys,
    registry::{
        core::{
            Registry,
            events::{MAX_EVENTS, NewEvent},
        },
        model::Event,
        view::View,
    },
    store::{Compare, MAX_TXN_OPS, Op, StoreError},
};

mod aged;
mod events;
mod nodes;
mod schemas;

use aged::Aged;

pub(super) async fn run(registry: &Registry, token: FencingToken) {
    let mut collector = Collector {
        registry,
        token,
        unused: Aged::default(),
        marked: Aged::default(),
        parts: Aged::default(),
        gone: Aged::default(),
    };
    let interval = registry.options().gc.interval;
    let mut changes = registry.subscribe();
    let mut next = tokio::time::Instant::now() + interval;
    loop {
        let looked = tokio::time::timeout_at(next, changes.next()).await;
        let result = match looked {
            Ok(batch) if batch.events => collector.trim_events().await,
            Ok(_) => continue,
            Err(_) => {
                next = tokio::time::Instant::now() + interval;
                collector.run_once().await
            }
        };
        if let Err(error) = &result {
            // Only errors: a run that had nothing to do may not have sent a request to the store.
            registry.on_store_result(&result);
            tracing::warn!(%error, "cannot delete unused records; retrying");
        }
    }
}

struct Collector<'a> {
    registry: &'a Registry,
    token: FencingToken,
    unused: Aged<Arc<str>>,
    marked: Aged<Arc<str>>,
    /// The keys of parts of descriptors whose whole is missing.
    parts: Aged<Arc<str>>,
    gone: Aged<Arc<str>>,
}

impl Collector<'_> {
    async fn run_once(&mut self) -> Result<(), StoreError> {
        self.check_schemas().await?;
        self.check_parts().await?;
        self.check_nodes().await?;
        self.trim_events().await
    }

    /// Deletes the events beyond the limits, several more at a time so that not every new event costs a transaction.
    async fn trim_events(&self) -> Result<(), StoreError> {
        loop {
            let old: Vec<Op> = self.registry.read(|view| {
                let events: Vec<_> = view.events().collect();
                let old = events::to_delete(&events, MAX_EVENTS, MAX_TXN_OPS / 2, MAX_TXN_OPS);
                let delete = |event: &Arc<Event>| Op::delete(&keys::event(&event.id));
                old.into_iter().map(delete).collect()
            });
            if old.is_empty() || !self.write(vec![], old, &[]).await? {
                return Ok(());
            }
        }
    }

    /// See [`Registry::txn_of_leader`].
    async fn write(
        &self,
        compare: Vec<Compare>,
        then: Vec<Op>,
        events: &[NewEvent],
    ) -> Result<bool, StoreError> {
        let registry = self.registry;
        registry
            .txn_of_leader(self.token, compare, then, events)
            .await
    }
}

/// The descriptors that instances and the records of services refer to, once per reference.
fn named(view: &View) -> impl Iterator<Item = &Arc<str>> {
    view.services().flat_map(move |service| {
        let of_instances = view
            .instances(service)
            .filter_map(|instance| instance.schema_sha256.as_ref());
        let of_service = view
            .recorded(service)
            .and_then(|known| known.schema_sha256.as_ref());
        of_instances.chain(of_service)
    })
}
