//! Follows the store: applies its changes to the view and publishes them to subscribers. If the watch breaks, the store
//! is read again and subscribers get the difference.

use std::{
    sync::{PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use super::{Registry, lock};
use crate::{
    names::keys,
    registry::view::{Batch, View},
    store::{Changes, Store, StoreError, Watch},
};

/// The pause before the store is read again after its watch broke.
const RELOAD_PAUSE: Duration = Duration::from_millis(200);

impl Registry {
    /// Starts with `changes`, which follow the view, or, if there are none, by reading the store again.
    pub(super) async fn follow(self, changes: Option<Watch>) {
        let mut changes = match changes {
            Some(changes) => changes,
            None => self.reload().await,
        };
        loop {
            match changes.next().await {
                Some(Ok(changes)) => self.fold(&changes),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the registry is reading the whole store again");
                    changes = self.reload().await;
                }
                // The store is closed.
                None => return,
            }
        }
    }

    fn fold(&self, changes: &Changes) {
        let mut batch = Batch::default();
        self.0
            .view
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(changes, &mut batch);
        self.publish(&batch);
    }

    async fn reload(&self) -> Watch {
        loop {
            tokio::time::sleep(RELOAD_PAUSE).await;
            match load(self.store()).await {
                Ok((view, changes)) => {
                    let batch = {
                        let mut held = self.0.view.write().unwrap_or_else(PoisonError::into_inner);
                        let batch = view.changes_since(&held);
                        *held = view;
                        batch
                    };
                    self.publish(&batch);
                    return changes;
                }
                Err(error) => tracing::warn!(%error, "cannot read the store; retrying"),
            }
        }
    }

    fn publish(&self, batch: &Batch) {
        if batch.listeners {
            self.0.listeners.fetch_add(1, Ordering::Release);
        }
        {
            let mut watches = lock(&self.0.node_watches);
            for name in &batch.nodes {
                if let Some(sender) = watches.get(&**name) {
                    sender.send_replace(self.read(|view| view.node(name).cloned()));
                }
            }
            watches.retain(|_, sender| sender.receiver_count() > 0);
        }
        for mailbox in lock(&self.0.subscribers).iter().filter_map(Weak::upgrade) {
            mailbox.put(batch.clone());
        }
        self.0.revision.send_replace(self.read(View::revision));
    }
}

/// Reads the whole store into a view, and starts a watch at the next revision.
pub(super) async fn load(store: &dyn Store) -> Result<(View, Watch), StoreError> {
    let nodes = store.range(keys::NODES, None).await?;
    let at = nodes.revision;
    let alive = store.range(keys::ALIVE, Some(at)).await?;
    let instances = store.range(keys::INSTANCES, Some(at)).await?;
    let services = store.range(keys::SERVICES, Some(at)).await?;
    let schemas = store.range_keys(keys::SCHEMAS, Some(at)).await?;
    let marked = store.range_keys(keys::MARKED_SCHEMAS, Some(at)).await?;
    let replicas = store.range(keys::REPLICAS, Some(at)).await?;
    let duties = store.range(keys::DUTIES, Some(at)).await?;
    let events = store.range(keys::EVENTS, Some(at)).await?;
    let clashes = store.range(keys::CLASHES, Some(at)).await?;
    let claims = store.range(keys::CLAIMS, Some(at)).await?;
    let ranges = [
        &nodes, &alive, &instances, &services, &schemas, &marked, &replicas, &duties, &events,
        &clashes, &claims,
    ];
    let view = View::load(at, ranges.into_iter().flat_map(|range| &range.items));
    let changes = store.watch("", at.next()).await?;
    Ok((view, changes))
}
