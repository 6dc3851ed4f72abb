//! What one client asked for of one type, what it holds, and what it said about it; the same for both variants of the
//! protocol. In come names, changes of the snapshot and acknowledgements, out goes what is to be sent now. Pure; one
//! response is under way at a time, and everything is bounded by the names of the mesh and of the client.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use super::{Lens, node::cut};
use crate::snapshot::{Changed, Kind, Resource, Snapshot};

/// Most names that a client may subscribe to, of one type.
pub const MAX_NAMES: usize = 50_000;
/// Longest name in bytes: that of a service has at most 127.
pub const MAX_NAME_BYTES: usize = 512;
/// A response is ended before it grows past this, where the protocol lets it be continued in a next one: gRPC's
/// default bound of a received message is 4 MiB. A single larger resource goes alone.
pub const MAX_RESPONSE_BYTES: usize = 3 << 20;
/// So much is kept of a client's reason for a rejection.
const MAX_REASON_BYTES: usize = 1024;

/// A client over a bound; its stream ends.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Violation {
    #[error("more than {MAX_NAMES} names of type {}", .0.url())]
    TooManyNames(Kind),
    #[error("a name of {bytes} bytes for type {}; at most {MAX_NAME_BYTES} are allowed", .kind.url())]
    NameTooLong { kind: Kind, bytes: usize },
}

/// A response by its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub version: String,
    pub revision: u64,
}

/// A response that the client rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub version: String,
    /// The client's words, cut.
    pub reason: String,
}

#[derive(Debug)]
struct Held {
    version: Arc<str>,
    /// None if the client brought it from an earlier stream.
    resource: Option<Arc<Resource>>,
}

#[derive(Debug)]
struct Flight {
    nonce: String,
    mark: Mark,
    names: BTreeSet<Arc<str>>,
}

/// What may differ from what the client holds.
#[derive(Debug)]
enum Pending {
    All,
    Names(BTreeSet<Arc<str>>),
}

/// What to send.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) resources: Vec<Arc<Resource>>,
    /// What the client holds or asked for and does not exist.
    pub(super) removed: Vec<Arc<str>>,
}

/// One type on one stream.
#[derive(Debug)]
pub struct Subscription {
    pub(super) kind: Kind,
    pub(super) asked: bool,
    pub(super) wildcard: bool,
    /// It has named something once: from then on an empty list means nothing (state of the world).
    pub(super) named: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    /// An answer is owed even if it is empty.
    pub(super) must_answer: bool,
    /// Wanted even if the client holds it unchanged.
    pub(super) forced: BTreeSet<Arc<str>>,
    held: BTreeMap<Arc<str>, Held>,
    pending: Pending,
    /// Asked for by name, and told that it does not exist.
    absent: BTreeSet<Arc<str>>,
    /// Names in responses that were rejected, until they are sent again.
    refused: BTreeSet<Arc<str>>,
    flight: Option<Flight>,
    nonces: u64,
    /// Everything up to this revision was looked at.
    examined: u64,
    sent: Option<Mark>,
    acknowledged: Option<Mark>,
    rejected: Option<Rejection>,
}

impl Subscription {
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            asked: false,
            wildcard: false,
            named: false,
            names: BTreeSet::new(),
            must_answer: false,
            forced: BTreeSet::new(),
            held: BTreeMap::new(),
            pending: Pending::Names(BTreeSet::new()),
            absent: BTreeSet::new(),
            refused: BTreeSet::new(),
            flight: None,
            nonces: 0,
            examined: 0,
            sent: None,
            acknowledged: None,
            rejected: None,
        }
    }

    // ---- what the client says ----

    /// Names it asks for, checked against the bounds.
    pub(super) fn check_names<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
        have: usize,
    ) -> Result<(), Violation> {
        let mut count = have;
        for name in names {
            count += 1;
            if count > MAX_NAMES {
                return Err(Violation::TooManyNames(self.kind));
            }
            if name.len() > MAX_NAME_BYTES {
                return Err(Violation::NameTooLong {
                    kind: self.kind,
                    bytes: name.len(),
                });
            }
        }
        Ok(())
    }

    /// Asks for one name (again): it will be answered even if the client holds it.
    pub(super) fn want(&mut self, name: Arc<str>, forced: bool) {
        self.absent.remove(&name);
        if forced {
            self.forced.insert(Arc::clone(&name));
        }
        self.touch(&name);
        self.names.insert(name);
    }

    /// No longer asks for one name.
    pub(super) fn unwant(&mut self, name: &str, lens: &Lens) {
        let Some(name) = self.names.take(name) else {
            return;
        };
        self.absent.remove(&name);
        if self.wildcard && lens.in_wildcard(self.kind, &name) {
            return;
        }
        self.held.remove(&name);
        self.forced.remove(&name);
        self.refused.remove(&name);
        if let Pending::Names(pending) = &mut self.pending {
            pending.remove(&name);
        }
    }

    pub(super) fn want_all(&mut self) {
        self.wildcard = true;
        self.touch_all();
    }

    /// The wildcard ends; what is asked for by name stays.
    pub(super) fn unwant_all(&mut self) {
        self.wildcard = false;
        let names = &self.names;
        self.held.retain(|name, _| names.contains(name));
        self.forced.retain(|name| names.contains(name));
    }

    /// What the client brings from an earlier stream.
    pub(super) fn brings(&mut self, name: Arc<str>, version: &str) {
        self.held.insert(
            name,
            Held {
                version: version.into(),
                resource: None,
            },
        );
    }

    pub(super) fn holds(&self, name: &str) -> bool {
        self.held.contains_key(name)
    }

    pub(super) fn touch(&mut self, name: &Arc<str>) {
        if let Pending::Names(pending) = &mut self.pending {
            pending.insert(Arc::clone(name));
        }
    }

    pub(super) fn touch_all(&mut self) {
        self.pending = Pending::All;
    }

    /// The nonce of the response under way.
    pub(super) fn awaits(&self, nonce: &str) -> bool {
        self.flight
            .as_ref()
            .is_some_and(|flight| flight.nonce == nonce)
    }

    /// The nonce is that of the last response sent.
    pub(super) fn is_last(&self, nonce: &str) -> bool {
        self.nonces > 0 && nonce == nonce_text(self.nonces)
    }

    /// The client answered the response under way; `reason`: it rejected it.
    pub(super) fn settle(&mut self, reason: Option<&str>) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        match reason {
            None => {
                self.acknowledged = Some(flight.mark);
                self.rejected = None;
            }
            Some(reason) => {
                self.rejected = Some(Rejection {
                    version: flight.mark.version,
                    reason: cut(reason, MAX_REASON_BYTES).to_owned(),
                });
                self.refused.extend(flight.names);
            }
        }
    }

    // ---- what changes ----

    /// A step of the snapshots changed these names.
    pub(super) fn observe(&mut self, changed: &Changed, lens: &Lens) {
        if !self.asked {
            return;
        }
        for name in changed.of(self.kind) {
            let covered = self.wildcard && lens.in_wildcard(self.kind, name);
            if covered || self.names.contains(name) || self.held.contains_key(name) {
                self.touch(name);
            }
        }
    }

    // ---- what is to be sent ----

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

    // ---- what is known about the client ----

    /// Whether the client acknowledged a state of this name at `revision` or later; none if it did not ask for it.
    #[must_use]
    pub fn acknowledged_at(&self, name: &str, revision: u64) -> Option<bool> {
        if !self.asked || !(self.wildcard || self.names.contains(name)) {
            return None;
        }
        let pending = match &self.pending {
            Pending::All => true,
            Pending::Names(names) => names.contains(name),
        };
        let in_flight = self
            .flight
            .as_ref()
            .is_some_and(|flight| flight.names.contains(name));
        Some(self.examined >= revision && !pending && !in_flight && !self.refused.contains(name))
    }

    /// The revision up to which everything was looked at.
    pub(super) fn examined(&self) -> u64 {
        self.examined
    }

    /// None if the client never asked for this type.
    #[must_use]
    pub fn status(&self) -> Option<Status<'_>> {
        self.asked.then(|| Status {
            wildcard: self.wildcard,
            subscribed: self.names.len(),
            held: self.held.len(),
            in_flight: self.in_flight(),
            sent: self.sent.as_ref(),
            acknowledged: self.acknowledged.as_ref(),
            rejected: self.rejected.as_ref(),
        })
    }
}

/// A subscription as status shows it.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    pub wildcard: bool,
    pub subscribed: usize,
    pub held: usize,
    pub in_flight: bool,
    pub sent: Option<&'a Mark>,
    pub acknowledged: Option<&'a Mark>,
    pub rejected: Option<&'a Rejection>,
}

fn nonce_text(count: u64) -> String {
    format!("{count:x}")
}
