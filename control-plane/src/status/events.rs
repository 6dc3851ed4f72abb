//! `WatchEvents`: what happened and why, as the view tells it. In comes the view, out go messages: first all that it
//! knows, then what is new. A reader that is slow skips nothing that the view still holds, and costs no queue.

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use heddle_proto::status::v1::{Event, WatchEventsResponse};

use crate::registry::{self, Registry, Subscription};

/// Events in one message; a cause is a sentence, so a message has at most about 100 KiB.
const AT_ONCE: usize = 100;

pub(super) type Events =
    Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, tonic::Status>> + Send>>;

pub(super) fn watch(registry: Registry) -> Events {
    let watcher = Watcher {
        changes: registry.subscribe(),
        registry,
        sent: BTreeSet::new(),
        initial_done: false,
        ended: false,
    };
    Box::pin(stream::unfold(watcher, Watcher::step))
}

struct Watcher {
    registry: Registry,
    changes: Subscription,
    /// Those of the view that were sent; ids of several replicas do not come in order.
    sent: BTreeSet<Arc<str>>,
    initial_done: bool,
    ended: bool,
}

impl Watcher {
    async fn step(mut self) -> Option<(Result<WatchEventsResponse, tonic::Status>, Self)> {
        if self.ended {
            return None;
        }
        let stop = self.registry.options().stop.clone();
        loop {
            let (events, is_all) = self.unsent();
            if !events.is_empty() || !self.initial_done {
                let initial_done = is_all && !self.initial_done;
                self.initial_done |= is_all;
                let response = WatchEventsResponse {
                    events,
                    initial_done,
                };
                return Some((Ok(response), self));
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let status = tonic::Status::unavailable(
                        "this replica of the control plane stops; ask another one",
                    );
                    self.ended = true;
                    return Some((Err(status), self));
                }
                () = news(&mut self.changes) => {}
            }
        }
    }

    /// Some events that were not sent yet, oldest first, and whether they are all.
    fn unsent(&mut self) -> (Vec<Event>, bool) {
        let (events, left, held) = self.registry.read(|view| {
            let mut unsent = view.events().filter(|event| !self.sent.contains(&event.id));
            let events: Vec<_> = unsent.by_ref().take(AT_ONCE).cloned().collect();
            let held: BTreeSet<_> = view.events().map(|event| Arc::clone(&event.id)).collect();
            (events, unsent.next().is_some(), held)
        });
        self.sent.retain(|id| held.contains(id));
        self.sent
            .extend(events.iter().map(|event| Arc::clone(&event.id)));
        (events.iter().map(|event| said(event)).collect(), !left)
    }
}

/// The next batch that tells of an event.
async fn news(changes: &mut Subscription) {
    while !changes.next().await.events {}
}

fn said(event: &registry::Event) -> Event {
    let record = event.record.clone();
    Event {
        id: event.id.to_string(),
        kind: record.kind,
        node: record.node,
        service: record.service,
        instance: record.instance,
        cause: record.cause,
        replica: record.replica,
        unix_ms: record.unix_ms,
    }
}
