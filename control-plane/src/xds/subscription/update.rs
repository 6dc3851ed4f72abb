//! Composes the next response of a subscription, and notes that it was sent. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use super::{Pending, ResponseVersion, Sent, SentResponse, SentState, nonce_text};
use crate::{
    snapshot::{Resource, Snapshot},
    xds::{ClientView, Subscription},
};

/// The content of the next response.
#[derive(Debug, Default)]
pub(in crate::xds) struct Update {
    pub(in crate::xds) resources: Vec<Arc<Resource>>,
    /// What the client has or requested and does not exist.
    pub(in crate::xds) removed: Vec<Arc<str>>,
    /// It is a part of a rejected response: nothing else is sent with it.
    probe: bool,
    /// What the response contains for each name, until it is sent.
    sent: BTreeMap<Arc<str>, Sent>,
}

impl Update {
    pub(in crate::xds) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

/// Removals that have to wait, because something that the client has may still refer to them.
#[derive(Debug)]
pub enum DeferredRemovals {
    Nothing,
    These(BTreeSet<Arc<str>>),
    Everything,
}

impl DeferredRemovals {
    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(names) => names.contains(name),
            Self::Everything => true,
        }
    }
}

impl Subscription {
    pub(in crate::xds) fn in_flight(&self) -> bool {
        self.flight.is_some()
    }

    /// Nothing is in flight, and nothing is left to examine.
    pub(in crate::xds) fn is_settled(&self) -> bool {
        !self.in_flight() && self.all_sent()
    }

    /// Nothing is left to examine.
    pub(in crate::xds) fn all_sent(&self) -> bool {
        self.probes.is_empty() && matches!(&self.pending, Pending::Names(names) if names.is_empty())
    }

    /// Something exists that the client wants and was not sent yet.
    pub(in crate::xds) fn unsent(&self, snapshot: &Snapshot, view: &ClientView) -> bool {
        let new = |name: &Arc<str>| {
            self.visible(snapshot, view, name)
                .is_some_and(|resource| self.lacks(&resource) && !self.waits(view, &resource))
        };
        let probed = self.probes.iter().flatten().any(new);
        match &self.pending {
            Pending::All => true,
            Pending::Names(names) => probed || names.iter().any(new),
        }
    }

    /// Names left to examine; none if all names are.
    pub(in crate::xds) fn pending_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let names = match &self.pending {
            Pending::All => None,
            Pending::Names(names) => Some(names),
        };
        names.into_iter().flatten()
    }

    /// Takes what is to be sent next, about `limit` bytes at most: a part of a rejected response, or else what changed
    /// for the client. What does not fit stays pending, and so do removals that are held back. From here on the client
    /// counts as having what is taken.
    pub(in crate::xds) fn take_update(
        &mut self,
        snapshot: &Snapshot,
        view: &ClientView,
        deferred: &DeferredRemovals,
        limit: usize,
    ) -> Update {
        while let Some(probe) = self.probes.pop_front() {
            let (mut update, left) = self.sort(probe, snapshot, view, deferred, limit);
            for name in &left {
                self.mark_pending(name);
            }
            if !update.is_empty() {
                update.probe = true;
                update.sent = self.commit(&update);
                return update;
            }
        }
        let candidates = self.take_candidates(snapshot, view);
        let (mut update, left) = self.sort(candidates, snapshot, view, deferred, limit);
        self.pending = Pending::Names(left);
        self.examined = snapshot.revision;
        update.sent = self.commit(&update);
        update
    }

    /// Sorts the candidates into what the client lacks and what has to wait.
    fn sort(
        &self,
        candidates: BTreeSet<Arc<str>>,
        snapshot: &Snapshot,
        view: &ClientView,
        deferred: &DeferredRemovals,
        limit: usize,
    ) -> (Update, BTreeSet<Arc<str>>) {
        let mut update = Update::default();
        let mut left = BTreeSet::new();
        let mut bytes = 0;
        for name in candidates {
            if !view.knows(self.kind, &name) {
                left.insert(name);
                continue;
            }
            let forced = self.forced.contains(&name);
            match self.visible(snapshot, view, &name) {
                // A newer state of what the client has: it can wait, and only the newest is sent.
                Some(resource) if !forced && self.waits(view, &resource) => {
                    left.insert(name);
                }
                Some(resource) if forced || self.lacks(&resource) => {
                    if bytes > 0 && bytes + resource.size() > limit {
                        left.insert(name);
                        continue;
                    }
                    bytes += resource.size();
                    update.resources.push(resource);
                }
                Some(_) => {}
                None => {
                    let client_has = self.client_has(&name);
                    let unknown = self.names.contains(&name) && !self.absent.contains(&name);
                    if client_has && deferred.contains(&name) {
                        left.insert(name);
                    } else if forced || ((client_has || unknown) && !self.refuses(&name, None)) {
                        update.removed.push(name);
                    }
                }
            }
        }
        (update, left)
    }

    /// Drops the content of what was sent: where the whole state is never sent, the version is enough.
    pub(in crate::xds) fn drop_content(&mut self, name: &str) {
        if let Some(held) = self.sent_states.get_mut(name) {
            held.resource = None;
        }
    }

    /// Something requested by name does not exist.
    pub(in crate::xds) fn has_absent(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Examines again what did not exist.
    pub(in crate::xds) fn mark_absent_pending(&mut self) {
        if let Pending::Names(pending) = &mut self.pending {
            pending.extend(self.absent.iter().cloned());
        }
    }

    fn take_candidates(&mut self, snapshot: &Snapshot, view: &ClientView) -> BTreeSet<Arc<str>> {
        match mem::replace(&mut self.pending, Pending::Names(BTreeSet::new())) {
            Pending::Names(mut names) => {
                names.extend(self.forced.iter().cloned());
                names
            }
            Pending::All => {
                let mut names: BTreeSet<_> = self.names.iter().cloned().collect();
                names.extend(self.sent_states.keys().cloned());
                if self.wildcard {
                    names.extend(view.wildcard_names(snapshot, self.kind).cloned());
                }
                names
            }
        }
    }

    fn commit(&mut self, update: &Update) -> BTreeMap<Arc<str>, Sent> {
        let mut sent = BTreeMap::new();
        for resource in &update.resources {
            let held = SentState {
                version: Arc::clone(&resource.version),
                resource: Some(Arc::clone(resource)),
            };
            let before = self.sent_states.insert(Arc::clone(&resource.name), held);
            self.absent.remove(&resource.name);
            let version = Some(Arc::clone(&resource.version));
            self.note(&resource.name, version, before, update.probe, &mut sent);
        }
        for name in &update.removed {
            let before = self.sent_states.remove(name);
            if self.names.contains(name) {
                self.absent.insert(Arc::clone(name));
            }
            self.note(name, None, before, update.probe, &mut sent);
        }
        sent
    }

    fn note(
        &mut self,
        name: &Arc<str>,
        version: Option<Arc<str>>,
        before: Option<SentState>,
        probe: bool,
        sent: &mut BTreeMap<Arc<str>, Sent>,
    ) {
        self.forced.remove(name);
        if let (true, Pending::Names(pending)) = (probe, &mut self.pending) {
            pending.remove(name);
        }
        // What it had when it rejected is still what it accepted last.
        let before = match self.refused.remove(name) {
            Some(refused) => refused.before,
            None => before,
        };
        sent.insert(Arc::clone(name), Sent { version, before });
    }

    /// Everything that the client should have: after `take_update` the whole state.
    pub(in crate::xds) fn whole(&self) -> Vec<Arc<Resource>> {
        self.sent_states
            .values()
            .filter_map(|held| held.resource.clone())
            .collect()
    }

    /// A response is sent; returns its nonce.
    pub(in crate::xds) fn on_sent(
        &mut self,
        mark: ResponseVersion,
        update: &mut Update,
        whole: bool,
    ) -> String {
        self.nonces += 1;
        let nonce = nonce_text(self.nonces);
        self.must_answer &= update.probe;
        self.sent = Some(mark.clone());
        let completes = self.filling && self.all_sent();
        self.filling &= !completes;
        self.flight = Some(SentResponse {
            nonce: nonce.clone(),
            mark,
            sent: mem::take(&mut update.sent),
            whole,
            completes,
        });
        nonce
    }

    fn visible(
        &self,
        snapshot: &Snapshot,
        view: &ClientView,
        name: &Arc<str>,
    ) -> Option<Arc<Resource>> {
        let named = self.names.contains(name);
        if !(named || self.wildcard && view.in_wildcard(self.kind, name)) {
            return None;
        }
        match view.get(snapshot, self.kind, name) {
            Some(resource) => Some(Arc::clone(resource)),
            None if named => view.stand_in(self.kind, name),
            None => None,
        }
    }

    /// Whether this is to be sent, but not now: the client has an older state of it.
    fn waits(&self, view: &ClientView, resource: &Resource) -> bool {
        self.client_has(&resource.name) && self.lacks(resource) && view.holds_back(resource)
    }

    /// Whether this is to be sent to the client.
    fn lacks(&self, resource: &Resource) -> bool {
        let held = self.sent_states.get(&resource.name);
        held.is_none_or(|held| held.version != resource.version)
            && !self.refuses(&resource.name, Some(&resource.version))
    }
}
