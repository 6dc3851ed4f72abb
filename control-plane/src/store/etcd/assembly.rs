//! Assembles the revisions of a watch: one message may contain events of several revisions, one revision may be split
//! into several messages, and progress messages report how far the watch is. The result is complete revisions, each
//! once and in order. Pure.

use std::collections::VecDeque;

use super::{api, translate::Space};
use crate::store::{Changes, Event, Revision};

pub(super) struct Assembly {
    space: Space,
    /// The next revision to return: older ones were returned before a reconnect.
    next: Revision,
    /// The newest revision that was returned; 0 if none was.
    given: Revision,
    /// The events of the incomplete revision; bounded by what one transaction can change.
    pending: Vec<Event>,
    pending_at: Revision,
    ready: VecDeque<Changes>,
}

impl Assembly {
    pub(super) fn new(space: Space, from: Revision) -> Self {
        Self {
            space,
            next: from,
            given: Revision(0),
            pending: Vec::new(),
            pending_at: Revision(0),
            ready: VecDeque::new(),
        }
    }

    /// The first revision that has not been returned completely: where a new stream must start.
    pub(super) fn next(&self) -> Revision {
        self.next
    }

    /// The newest revision that was returned; etcd has been at this revision or later.
    pub(super) fn given(&self) -> Revision {
        self.given
    }

    pub(super) fn pop(&mut self) -> Option<Changes> {
        self.ready.pop_front()
    }

    /// The stream broke: the events of an incomplete revision will be sent again.
    pub(super) fn broken(&mut self) {
        self.pending.clear();
    }

    pub(super) fn on_events(&mut self, events: Vec<api::Event>, more_of_revision: bool) {
        for event in events {
            let Some((at, event)) = self.space.event(event) else {
                tracing::debug!("ignoring a foreign key under the store's prefix");
                continue;
            };
            if at < self.next {
                continue;
            }
            if at != self.pending_at {
                self.complete();
                self.pending_at = at;
            }
            self.pending.push(event);
        }
        if !more_of_revision {
            self.complete();
        }
    }

    /// All events up to this revision have been sent.
    pub(super) fn on_progress(&mut self, at: Revision) {
        if at >= self.next {
            self.give(at, Vec::new());
        }
    }

    fn complete(&mut self) {
        if !self.pending.is_empty() {
            let events = std::mem::take(&mut self.pending);
            self.give(self.pending_at, events);
        }
    }

    fn give(&mut self, revision: Revision, events: Vec<Event>) {
        self.next = revision.next();
        self.given = revision;
        self.ready.push_back(Changes {
            revision,
            events: events.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(key: &str, at: i64) -> api::Event {
        let kv = api::KeyValue {
            key: Bytes::copy_from_slice(format!("p/{key}").as_bytes()),
            mod_revision: at,
            create_revision: at,
            ..api::KeyValue::default()
        };
        api::Event {
            kv: Some(kv),
            ..api::Event::default()
        }
    }

    fn given(assembly: &mut Assembly) -> Vec<String> {
        std::iter::from_fn(|| assembly.pop())
            .map(|changes| {
                let keys: Vec<_> = changes.events.iter().map(|event| &*event.key).collect();
                format!("{}:{}", changes.revision, keys.join("+"))
            })
            .collect()
    }

    fn assembly(from: u64) -> Assembly {
        Assembly::new(Space::new("p/"), Revision(from))
    }

    #[test]
    fn a_message_of_many_revisions_is_taken_apart() {
        let mut it = assembly(5);
        it.on_events(
            vec![put("a", 5), put("b", 5), put("a", 7), put("c", 9)],
            false,
        );
        assert_eq!(given(&mut it), ["5:a+b", "7:a", "9:c"]);
        assert_eq!(it.next(), Revision(10));
    }

    #[test]
    fn a_revision_in_fragments_comes_whole() {
        let mut it = assembly(1);
        it.on_events(vec![put("a", 4), put("b", 5)], true);
        assert_eq!(given(&mut it), ["4:a"]);
        assert_eq!(it.next(), Revision(5), "a new stream asks for 5 again");
        it.on_events(vec![put("c", 5)], true);
        assert_eq!(given(&mut it), [""; 0]);
        it.on_events(vec![put("d", 5)], false);
        assert_eq!(given(&mut it), ["5:b+c+d"]);
    }

    #[test]
    fn a_break_in_the_middle_of_a_revision_loses_and_doubles_nothing() {
        let mut it = assembly(1);
        it.on_events(vec![put("a", 4), put("b", 5)], true);
        it.broken();
        it.on_events(vec![put("a", 4), put("b", 5), put("c", 5)], false);
        assert_eq!(given(&mut it), ["4:a", "5:b+c"]);
    }

    #[test]
    fn progress_moves_on_and_never_back() {
        let mut it = assembly(10);
        it.on_progress(Revision(9));
        assert_eq!(given(&mut it), [""; 0]);
        it.on_progress(Revision(12));
        it.on_progress(Revision(12));
        assert_eq!(given(&mut it), ["12:"]);
        it.on_events(vec![put("late", 12), put("a", 13)], false);
        assert_eq!(given(&mut it), ["13:a"], "12 was reported complete");
    }
}
