//! `WatchEvents`: first all events in the view, then new ones. A slow reader has no queue of its own, and misses no
//! event that is still in the view.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use heddle_proto::{
    EVENT_KINDS,
    status::v1::{Event, WatchEventsRequest, WatchEventsResponse},
};

use crate::{
    names::ServiceName,
    registry::{self, Registry, ViewChanges},
};

/// Most events in one message; a cause is a sentence, so a message has at most about 100 KiB.
const MAX_BATCH: usize = 100;

pub(super) type Events =
    Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, tonic::Status>> + Send>>;

/// Most kinds in one request.
const MAX_KINDS: usize = 100;

/// Which events are requested.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Not older than this, by the replicas' clocks.
    since_unix_ms: u64,
    until_now: bool,
    kinds: Vec<String>,
    /// The name as events have it.
    service: Option<String>,
}

impl Filter {
    /// `now` is the time of day in milliseconds since 1970.
    pub(super) fn parse(request: WatchEventsRequest, now: u64) -> Result<Self, tonic::Status> {
        let refused = |text: &str| Err(tonic::Status::invalid_argument(text));
        let since = match request.since.map(Duration::try_from) {
            None => None,
            Some(Ok(since)) => Some(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            Some(Err(_)) => {
                return refused("since: must not be negative: it is how long ago, as \"600s\"");
            }
        };
        if request.kinds.len() > MAX_KINDS {
            return refused("kinds: at most 100; leave it out for all");
        }
        let is_kind = |kind: &String| EVENT_KINDS.contains(&kind.as_str());
        if let Some(kind) = request.kinds.iter().find(|kind| !is_kind(kind)) {
            let kind: String = kind.chars().take(64).collect();
            return refused(&format!(
                "kinds: {kind:?} is not a kind of event; the kinds are {}",
                EVENT_KINDS.join(", ")
            ));
        }
        let service = match request.service.as_str() {
            "" => None,
            name => match ServiceName::parse(name).filter(|_| name.len() <= 256) {
                Some(name) => Some(name.to_string()),
                None => {
                    return refused(
                        "service: must be \"<service>\" (namespace default) or \"<service>.<namespace>\"",
                    );
                }
            },
        };
        Ok(Self {
            since_unix_ms: since.map_or(0, |since| now.saturating_sub(since)),
            until_now: request.until_now,
            kinds: request.kinds,
            service,
        })
    }

    fn admits(&self, event: &registry::Event) -> bool {
        let record = &event.record;
        record.unix_ms >= self.since_unix_ms
            && (self.kinds.is_empty() || self.kinds.contains(&record.kind))
            && self
                .service
                .as_ref()
                .is_none_or(|it| *it == record.service || record.services.contains(it))
    }
}

pub(super) fn watch(registry: Registry, filter: Filter) -> Events {
    let watcher = Watcher {
        changes: registry.subscribe(),
        registry,
        filter,
        sent: BTreeSet::new(),
        initial_done: false,
        ended: false,
    };
    Box::pin(stream::unfold(watcher, Watcher::step))
}

struct Watcher {
    registry: Registry,
    changes: ViewChanges,
    filter: Filter,
    /// The ids of the events in the view that were sent; those of several replicas do not come in order.
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
                self.ended = self.filter.until_now && is_all;
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
                        "this replica of the control plane is stopping; call another one",
                    );
                    self.ended = true;
                    return Some((Err(status), self));
                }
                () = next_change(&mut self.changes) => {}
            }
        }
    }

    /// Some events that were not sent yet, oldest first, and whether these are all of them.
    fn unsent(&mut self) -> (Vec<Event>, bool) {
        let (events, left, present) = self.registry.read(|view| {
            let admitted = view.events().filter(|event| self.filter.admits(event));
            let mut unsent = admitted.filter(|event| !self.sent.contains(&event.id));
            let events: Vec<_> = unsent.by_ref().take(MAX_BATCH).cloned().collect();
            let present: BTreeSet<_> = view.events().map(|event| Arc::clone(&event.id)).collect();
            (events, unsent.next().is_some(), present)
        });
        self.sent.retain(|id| present.contains(id));
        self.sent
            .extend(events.iter().map(|event| Arc::clone(&event.id)));
        (
            events.iter().map(|event| to_message(event)).collect(),
            !left,
        )
    }
}

/// Waits for the next batch that contains an event.
async fn next_change(changes: &mut ViewChanges) {
    while !changes.next().await.events {}
}

fn to_message(event: &registry::Event) -> Event {
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
        services: record.services,
    }
}

#[cfg(test)]
mod tests {
    use heddle_proto::store::v1::EventRecord;

    use super::*;

    fn event(kind: &str, service: &str, unix_ms: u64) -> registry::Event {
        registry::Event {
            id: "1".into(),
            record: EventRecord {
                kind: kind.into(),
                service: service.into(),
                unix_ms,
                ..EventRecord::default()
            },
        }
    }

    #[test]
    fn events_are_chosen_by_age_kind_and_service() {
        let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
        let request = WatchEventsRequest {
            since: Some(seconds(60)),
            kinds: vec!["node-left".into(), "instance-left".into()],
            service: "users".into(),
            ..WatchEventsRequest::default()
        };
        let filter = Filter::parse(request, 100_000).unwrap();
        for (event, admitted) in [
            (event("instance-left", "users.default", 40_000), true),
            (event("instance-left", "users.default", 39_999), false),
            (event("instance-joined", "users.default", 50_000), false),
            (event("instance-left", "users.shop", 50_000), false),
        ] {
            assert_eq!(filter.admits(&event), admitted, "{event:?}");
        }
        // An event of a node is one of each service of its instances.
        let mut of_node = event("node-left", "", 50_000);
        assert!(!filter.admits(&of_node));
        of_node.record.services = vec!["users.default".into(), "web.default".into()];
        assert!(filter.admits(&of_node));
        let all = Filter::parse(WatchEventsRequest::default(), 0).unwrap();
        assert!(all.admits(&event("any", "", 0)) && !all.until_now);

        let bad = [
            (Some(seconds(-1)), "", "", "since"),
            (None, "Node Left", "", "kinds"),
            (None, "nosuch", "", "kinds"),
            (None, "", "a.b.c", "service"),
        ];
        for (since, kind, service, field) in bad {
            let kinds = (!kind.is_empty()).then(|| kind.to_owned());
            let request = WatchEventsRequest {
                since,
                kinds: kinds.into_iter().collect(),
                service: service.into(),
                ..WatchEventsRequest::default()
            };
            let status = Filter::parse(request, 0).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{status:?}");
        }
    }
}
