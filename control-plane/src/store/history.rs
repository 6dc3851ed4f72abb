//! The recent changes of a store, for watches and for reads at an earlier revision. Bounded by count and bytes:
//! published changes beyond the bounds are compacted.

use std::collections::VecDeque;

use super::{Changes, Event, KeyValue, Revision, StoreError};

/// The most revisions: some minutes of a mesh of a thousand nodes under heavy churn.
const MAX_REVISIONS: usize = 100_000;
/// The most bytes of keys and values.
const MAX_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub(crate) struct History {
    changes: VecDeque<Changes>,
    /// Changes up to this revision are dropped.
    compacted: Revision,
    /// Changes up to this revision are visible.
    published: Revision,
    newest: Revision,
    bytes: usize,
    max_revisions: usize,
}

impl History {
    /// A history that begins after a revision.
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            changes: VecDeque::new(),
            compacted: revision,
            published: revision,
            newest: revision,
            bytes: 0,
            max_revisions: MAX_REVISIONS,
        }
    }

    pub(crate) fn set_max_revisions(&mut self, max: usize) {
        self.max_revisions = max;
    }

    pub(crate) fn max_revisions(&self) -> usize {
        self.max_revisions
    }

    pub(crate) fn newest(&self) -> Revision {
        self.newest
    }

    pub(crate) fn published(&self) -> Revision {
        self.published
    }

    pub(crate) fn push(&mut self, changes: Changes) {
        self.newest = changes.revision;
        self.bytes += bytes_of(&changes);
        self.changes.push_back(changes);
    }

    pub(crate) fn publish(&mut self) {
        self.published = self.newest;
        while self.changes.len() > self.max_revisions || self.bytes > MAX_BYTES {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.bytes -= bytes_of(&oldest);
            self.compacted = oldest.revision;
        }
    }

    /// The revision to read at, or an error if it is not available.
    pub(crate) fn check(&self, at: Option<Revision>) -> Result<Revision, StoreError> {
        let at = at.unwrap_or(self.published);
        if at > self.published {
            return Err(StoreError::Future {
                requested: at,
                now: self.published,
            });
        }
        if at < self.compacted {
            return Err(StoreError::Compacted {
                requested: at,
                first: self.compacted,
            });
        }
        Ok(at)
    }

    /// All changes after a revision, oldest first, published or not.
    pub(crate) fn after(
        &self,
        revision: Revision,
    ) -> impl DoubleEndedIterator<Item = &Changes> + use<'_> {
        let start = self
            .changes
            .partition_point(|changes| changes.revision <= revision);
        self.changes.range(start..)
    }

    /// Published changes of keys with a prefix since `from`, at most `limit` revisions, and the revision to continue
    /// from.
    pub(crate) fn watch(
        &self,
        prefix: &str,
        from: Revision,
        limit: usize,
    ) -> Result<(Vec<Changes>, Revision), StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted {
                requested: from,
                first: self.compacted.next(),
            });
        }
        let before = Revision(from.0.saturating_sub(1));
        let mut next = from.max(self.published.next());
        let mut found = Vec::new();
        for changes in self
            .after(before)
            .take_while(|changes| changes.revision <= self.published)
        {
            if found.len() == limit {
                next = changes.revision;
                break;
            }
            found.extend(only(changes, prefix));
        }
        Ok((found, next))
    }
}

fn only(changes: &Changes, prefix: &str) -> Option<Changes> {
    let wanted = |event: &&Event| event.key.starts_with(prefix);
    let count = changes.events.iter().filter(wanted).count();
    if count == changes.events.len() {
        return Some(changes.clone());
    }
    (count > 0).then(|| Changes {
        revision: changes.revision,
        events: changes.events.iter().filter(wanted).cloned().collect(),
    })
}

fn bytes_of(changes: &Changes) -> usize {
    let of = |item: &Option<KeyValue>| item.as_ref().map_or(0, |item| item.value.len());
    changes
        .events
        .iter()
        .map(|event| event.key.len() + of(&event.now) + of(&event.before))
        .sum()
}
