//! What of a snapshot is news for one subscription, and that it was sent. Pure; the other half of `subscription`.

use std::{collections::BTreeSet, mem, sync::Arc};

use super::{
    Lens, Subscription,
    subscription::{Flight, Held, Mark, Pending, nonce_text},
};
use crate::snapshot::{Resource, Snapshot};

/// What to send.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) resources: Vec<Arc<Resource>>,
    /// What the client holds or asked for and does not exist.
    pub(super) removed: Vec<Arc<str>>,
}

impl Subscription {
    pub(super) fn in_flight(&self) -> bool {
        self.flight.is_some()
    }

    /// Nothing under way, and nothing left to look at.
    pub(super) fn settled(&self) -> bool {
        !self.in_flight() && matches!(&self.pending, Pending::Names(names) if names.is_empty())
    }

    /// Something exists that the client wants and was not sent yet.
    pub(super) fn unsent(&self, snapshot: &Snapshot, lens: &Lens) -> bool {
        let new = |name: &Arc<str>| {
            self.visible(snapshot, lens, name)
                .is_some_and(|resource| !self.has(resource))
        };
        match &self.pending {
            Pending::All => true,
            Pending::Names(names) => names.iter().any(new),
        }
    }

    /// Names left to look at; none while everything is.
    pub(super) fn pending_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let names = match &self.pending {
            Pending::All => None,
            Pending::Names(names) => Some(names),
        };
        names.into_iter().flatten()
    }

    /// Takes what changed for the client, at most about `limit` bytes of it; what it does not have room for stays
    /// pending, and so do removals while they are held back. The client counts as holding it from here on.
    pub(super) fn take_news(
        &mut self,
        snapshot: &Snapshot,
        lens: &Lens,
        hold_removals: bool,
        limit: usize,
    ) -> News {
        let candidates = self.take_candidates(snapshot, lens);
        let mut news = News::default();
        let mut left = BTreeSet::new();
        let mut bytes = 0;
        for name in candidates {
            if !lens.knows(self.kind, &name) {
                left.insert(name);
                continue;
            }
            let forced = self.forced.contains(&name);
            match self.visible(snapshot, lens, &name) {
                Some(resource) if forced || !self.has(resource) => {
                    if bytes > 0 && bytes + resource.size() > limit {
                        left.insert(name);
                        continue;
                    }
                    bytes += resource.size();
                    news.resources.push(Arc::clone(resource));
                }
                Some(_) => {}
                None => {
                    let holds = self.holds(&name);
                    let unknown = self.names.contains(&name) && !self.absent.contains(&name);
                    if holds && hold_removals {
                        left.insert(name);
                    } else if holds || unknown || forced {
                        news.removed.push(name);
                    }
                }
            }
        }
        self.pending = Pending::Names(left);
        self.examined = snapshot.revision;
        self.commit(&news);
        news
    }

    /// Forgets the bytes of what was sent: the version is enough where nothing is ever sent whole.
    pub(super) fn let_go(&mut self, name: &str) {
        if let Some(held) = self.held.get_mut(name) {
            held.resource = None;
        }
    }

    /// Something asked for by name does not exist.
    pub(super) fn misses(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Looks again for what did not exist.
    pub(super) fn touch_absent(&mut self) {
        if let Pending::Names(pending) = &mut self.pending {
            pending.extend(self.absent.iter().cloned());
        }
    }

    fn take_candidates(&mut self, snapshot: &Snapshot, lens: &Lens) -> BTreeSet<Arc<str>> {
        match mem::replace(&mut self.pending, Pending::Names(BTreeSet::new())) {
            Pending::Names(mut names) => {
                names.extend(self.forced.iter().cloned());
                names
            }
            Pending::All => {
                let mut names: BTreeSet<_> = self.names.iter().cloned().collect();
                names.extend(self.held.keys().cloned());
                if self.wildcard {
                    names.extend(lens.wildcard_names(snapshot, self.kind).cloned());
                }
                names
            }
        }
    }

    fn commit(&mut self, news: &News) {
        for resource in &news.resources {
            let held = Held {
                version: Arc::clone(&resource.version),
                resource: Some(Arc::clone(resource)),
            };
            self.held.insert(Arc::clone(&resource.name), held);
            self.absent.remove(&resource.name);
            self.refused.remove(&resource.name);
            self.forced.remove(&resource.name);
        }
        for name in &news.removed {
            self.held.remove(name);
            self.refused.remove(name);
            self.forced.remove(name);
            if self.names.contains(name) {
                self.absent.insert(Arc::clone(name));
            }
        }
    }

    /// Everything that the client is to hold: after `take_news` the whole state.
    pub(super) fn whole(&self) -> Vec<Arc<Resource>> {
        self.held
            .values()
            .filter_map(|held| held.resource.clone())
            .collect()
    }

    /// A response goes out; gives its nonce.
    pub(super) fn launch(&mut self, mark: Mark, names: BTreeSet<Arc<str>>) -> String {
        self.nonces += 1;
        let nonce = nonce_text(self.nonces);
        self.must_answer = false;
        self.sent = Some(mark.clone());
        self.flight = Some(Flight {
            nonce: nonce.clone(),
            mark,
            names,
        });
        nonce
    }

    fn visible<'a>(
        &self,
        snapshot: &'a Snapshot,
        lens: &'a Lens,
        name: &str,
    ) -> Option<&'a Arc<Resource>> {
        let covered = self.wildcard && lens.in_wildcard(self.kind, name);
        if !covered && !self.names.contains(name) {
            return None;
        }
        lens.get(snapshot, self.kind, name)
    }

    fn has(&self, resource: &Resource) -> bool {
        self.held
            .get(&resource.name)
            .is_some_and(|held| held.version == resource.version)
    }
}
