//! Records an event when the lease of a replica lapsed. A replica that stops records its own event. While another
//! replica is the leader, this one only keeps track of the running processes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::election::{FencingToken, LEADER};
use crate::{
    registry::{
        core::{Registry, ViewChanges, events::NewEvent},
        membership::{LEFT, left_cause, left_event},
        view::View,
    },
    store::MAX_TXN_OPS,
};

/// The pause before a failed write is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The processes of replicas, with their names.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<String, Arc<str>>);

impl Known {
    /// Keeps track of the replicas that serve, forever. While there is a leader, it records departures, and only the
    /// replicas that serve now are kept. While there is none, all replicas that have served are kept.
    pub(super) async fn follow(&mut self, registry: &Registry, changes: &mut ViewChanges) {
        loop {
            let own = &registry.options().process_id;
            registry.read(|view| {
                // This replica's own key may appear in the view before the election knows that it was written.
                let leader = view.duty_holder(LEADER);
                if leader.is_some_and(|leader| leader.process_id != *own) {
                    self.0.clear();
                }
                self.0.extend(present(view));
            });
            changes.of_replicas().await;
        }
    }

    /// The missing events of the replicas that are gone.
    fn gone(&self, view: &View) -> Vec<NewEvent> {
        let serves = |process: &String| view.replicas().any(|it| it.process_id == *process);
        let is_recorded = |name: &str, process: &str| {
            let cause = left_cause(name, process);
            let mut events = view.events();
            events.any(|event| event.record.kind == LEFT && event.record.cause.starts_with(&cause))
        };
        let gone = self
            .0
            .iter()
            .filter(|(process, name)| !serves(process) && !is_recorded(name, process));
        gone.map(|(process, name)| left_event(name, process, "its lease expired"))
            .collect()
    }
}

fn present(view: &View) -> impl Iterator<Item = (String, Arc<str>)> {
    view.replicas()
        .map(|it| (it.process_id.clone(), Arc::clone(&it.name)))
}

pub(super) async fn run(registry: &Registry, token: FencingToken, mut known: Known) {
    let mut changes = registry.subscribe();
    loop {
        let (gone, now) = registry.read(|view| (known.gone(view), present(view).collect()));
        let mut failed = None;
        for events in gone.chunks(MAX_TXN_OPS / 2) {
            let written = registry.txn_of_leader(token, vec![], vec![], events).await;
            registry.on_store_result(&written);
            failed = failed.or(written.err());
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "cannot record that replicas have gone; retrying");
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        }
        known = Known(now);
        changes.of_replicas().await;
    }
}
