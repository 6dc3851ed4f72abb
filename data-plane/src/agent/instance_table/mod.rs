//! The table of this node's instances: which are registered, since when, and their health. Input: registrations,
//! beats, files, check results and the time (`now` is a parameter). Output: immutable views, and a number that rises
//! with each change. No sockets, no tasks, no clock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, Protocol};

use super::{
    key::InstanceKey,
    removed::{Cause, Causes, RemovedInstances},
    served::{Declared, Reflected},
};

mod claims;
mod files;
mod joining;
mod schemas;
mod types;

pub use claims::ClaimOrder;
pub use schemas::MAX_HELD_COST;
pub use types::{Filed, Joined, Leaving, Refused, Source, View, Views};

/// The most instances one node takes.
pub const MAX_INSTANCES: usize = 10_000;

/// An instance that drains and that nobody took out is gone after so long: twice the longest wait for clients.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// The reason of an instance that drains.
pub const DRAINING: &str = "it is leaving: it finishes what it has and gets nothing new";

#[derive(Debug)]
struct Entry {
    view: Arc<View>,
    source: Source,
    /// Out at this time unless a beat comes; `None` for those of files.
    beat_by: Option<Instant>,
    /// The keep-alive stream that stands for it, the newest one.
    stream: Option<u64>,
    /// Why it drains, if it did not ask to go.
    unasked: Option<Cause>,
    /// What its registration says that it serves.
    declared: Declared,
    /// What its reflection told last.
    reflected: Option<Reflected>,
    /// It has answered whether it has reflection, or was given its time to.
    asked: bool,
    /// The control plane does not take it: nobody is to call it, whatever its check says meanwhile.
    refused: Option<Checks>,
}

/// What an instance's check said last.
#[derive(Debug)]
struct Checks {
    health: Health,
    reason: String,
}

/// See the module documentation.
#[derive(Debug)]
pub struct InstanceTable {
    entries: BTreeMap<InstanceKey, Entry>,
    by_registration: BTreeMap<Arc<str>, InstanceKey>,
    gone: RemovedInstances,
    claims: ClaimOrder,
    version: u64,
    ttl: Duration,
    streams: u64,
}

/// The reason of an instance whose first check has not succeeded yet.
pub const UNCHECKED: &str = "its first health check has not succeeded yet";

impl InstanceTable {
    #[must_use]
    pub fn new(ttl: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_registration: BTreeMap::new(),
            gone: RemovedInstances::default(),
            claims: ClaimOrder::default(),
            version: 0,
            ttl,
            streams: 0,
        }
    }

    /// Rises with every change that others can see.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    #[must_use]
    pub fn views(&self) -> Views {
        self.entries
            .iter()
            .map(|(key, entry)| (key.clone(), Arc::clone(&entry.view)))
            .collect()
    }

    /// In which order services claimed their paths.
    #[must_use]
    pub fn claims(&self) -> &ClaimOrder {
        &self.claims
    }

    /// The order in which the last process of this node had them; before its instances are put back.
    pub fn restore_claims(&mut self, places: &[(String, String)]) {
        self.claims.restore(places);
    }

    #[must_use]
    pub fn view(&self, key: &InstanceKey) -> Option<&Arc<View>> {
        self.entries.get(key).map(|entry| &entry.view)
    }

    /// Those that registered themselves: what the state dir keeps.
    #[must_use]
    pub fn registered(&self) -> Vec<Arc<View>> {
        let own = |entry: &&Entry| !matches!(entry.source, Source::File(_) | Source::Leaving);
        self.entries
            .values()
            .filter(own)
            .map(|entry| Arc::clone(&entry.view))
            .collect()
    }

    /// A keep-alive stream begins; it now stands for the registration. `None`: unknown, register again.
    pub fn stream_opened(&mut self, registration: &str, now: Instant) -> Option<u64> {
        let ttl = self.ttl;
        self.streams += 1;
        let stream = self.streams;
        let entry = self.entry_of(registration)?;
        entry.stream = Some(stream);
        if entry.source != Source::Leaving {
            entry.beat_by = now.checked_add(ttl);
        }
        if entry.source == Source::Restored {
            entry.source = Source::Registered;
        }
        Some(stream)
    }

    /// A beat; how the instance is, and why. `None`: the registration is gone.
    pub fn beat(&mut self, registration: &str, now: Instant) -> Option<(Health, String)> {
        let ttl = self.ttl;
        let entry = self.entry_of(registration)?;
        if entry.source != Source::Leaving {
            entry.beat_by = now.checked_add(ttl);
        }
        Some((entry.view.health, entry.view.reason.clone()))
    }

    /// A keep-alive stream broke, or has no beats: its instance is out at once, unless a newer stream stands for it.
    pub fn stream_closed(
        &mut self,
        registration: &str,
        stream: u64,
        cause: Cause,
    ) -> Option<InstanceKey> {
        let entry = self.entry_of(registration)?;
        if entry.stream != Some(stream) {
            return None;
        }
        self.deregister(registration, Some(cause))
    }

    /// An instance gets no new calls from now on, and is gone once it is deregistered, or after `LEAVE_WITHIN`.
    pub fn drain(
        &mut self,
        registration: &str,
        unasked: Option<Cause>,
        now: Instant,
    ) -> Option<Leaving> {
        let key = self.by_registration.get(registration)?.clone();
        self.drain_key(&key, unasked, now)
    }

    fn drain_key(
        &mut self,
        key: &InstanceKey,
        unasked: Option<Cause>,
        now: Instant,
    ) -> Option<Leaving> {
        let entry = self.entries.get_mut(key)?;
        // Asked twice, it does not stay longer.
        if entry.source != Source::Leaving {
            entry.source = Source::Leaving;
            entry.unasked = unasked;
            entry.beat_by = now.checked_add(LEAVE_WITHIN);
            let mut view = View::clone(&entry.view);
            view.health = Health::Draining;
            DRAINING.clone_into(&mut view.reason);
            entry.view = Arc::new(view);
            self.version += 1;
        }
        Some(Leaving {
            key: key.clone(),
            registration: Arc::clone(&entry.view.registration),
            version: self.version,
        })
    }

    /// Takes an instance out: because it asks, or for a cause.
    pub fn deregister(
        &mut self,
        registration: &str,
        unasked: Option<Cause>,
    ) -> Option<InstanceKey> {
        let key = self.by_registration.get(registration)?.clone();
        self.take_out(&key, unasked)?;
        Some(key)
    }

    /// Takes out whose beat is overdue; and why, but for those that had asked to go.
    pub fn expire(&mut self, now: Instant) -> Vec<(InstanceKey, Option<Cause>)> {
        self.claims.forget(now);
        let due = |entry: &Entry| entry.beat_by.is_some_and(|by| by <= now);
        let keys: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, e)| due(e))
            .map(|(k, e)| (k.clone(), e.source == Source::Restored))
            .collect();
        let mut out = Vec::new();
        for (key, restored) in keys {
            let cause = if restored {
                Cause::NotBack(self.ttl)
            } else {
                Cause::NoBeat(self.ttl)
            };
            if let Some(cause) = self.take_out(&key, Some(cause)) {
                out.push((key, cause));
            }
        }
        out
    }

    /// Why it went in the end: one that drains had its cause, or none, before.
    fn take_out(&mut self, key: &InstanceKey, unasked: Option<Cause>) -> Option<Option<Cause>> {
        let entry = self.remove_entry(key)?;
        self.version += 1;
        let cause = match entry.source {
            Source::Leaving => entry.unasked,
            _ => unasked,
        };
        self.gone.went(key.clone(), cause.clone(), self.version);
        Some(cause)
    }

    /// Those that went and that the control plane does not know of yet; it knows of all up to the change `known`.
    pub fn gone(&mut self, known: u64) -> Causes {
        self.gone.known(known);
        self.gone.causes()
    }

    /// When the next beat is due.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| entry.beat_by)
            .min()
    }

    /// What a check found. Ignored when the registration has been replaced, or drains.
    pub fn set_health(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        health: Health,
        reason: &str,
    ) -> bool {
        let entry = self.entries.get_mut(key);
        let entry = entry.filter(|entry| &*entry.view.registration == registration);
        if let Some(refused) = entry.and_then(|entry| entry.refused.as_mut()) {
            refused.health = health;
            reason.clone_into(&mut refused.reason);
            return false;
        }
        self.change(key, registration, |view| {
            if view.health != Health::Draining {
                view.health = health;
                reason.clone_into(&mut view.reason);
            }
        })
    }

    /// The control plane does not take this registration, for the given reason, or takes it: then it is as its check says.
    /// True if that is news.
    pub fn set_refused(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        reason: Option<&str>,
    ) -> bool {
        let entry = self.entries.get_mut(key);
        let Some(entry) = entry.filter(|entry| &*entry.view.registration == registration) else {
            return false;
        };
        let (health, reason) = match (reason, entry.refused.take()) {
            (None, None) => return false,
            (None, Some(Checks { health, reason })) => (health, reason),
            (Some(reason), before) => {
                let checks = before.unwrap_or_else(|| Checks {
                    health: entry.view.health,
                    reason: entry.view.reason.clone(),
                });
                entry.refused = Some(checks);
                (Health::Unhealthy, reason.to_owned())
            }
        };
        self.change(key, registration, |view| {
            if view.health != Health::Draining {
                view.health = health;
                view.reason = reason;
            }
        })
    }

    /// True if something visible changed.
    fn change(&mut self, key: &InstanceKey, registration: &str, f: impl FnOnce(&mut View)) -> bool {
        let Some(entry) = self
            .entries
            .get_mut(key)
            .filter(|e| &*e.view.registration == registration)
        else {
            return false;
        };
        let mut view = View::clone(&entry.view);
        f(&mut view);
        if view == *entry.view {
            return false;
        }
        entry.view = Arc::new(view);
        self.version += 1;
        true
    }

    fn entry_of(&mut self, registration: &str) -> Option<&mut Entry> {
        let key = self.by_registration.get(registration)?;
        self.entries.get_mut(key)
    }

    fn remove_entry(&mut self, key: &InstanceKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.by_registration.remove(&entry.view.registration);
        self.claims.remove(&entry.view);
        Some(entry)
    }

    /// Whether every instance has had its first check, and those that take calls have told what they serve.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.entries.values().all(|entry| {
            let view = &entry.view;
            let grpc = view.instance.protocol == i32::from(Protocol::Grpc);
            match view.health {
                Health::Healthy => !grpc || entry.asked || !view.protos.is_empty(),
                _ => view.reason != UNCHECKED,
            }
        })
    }

    /// Whether this registration still stands.
    #[must_use]
    pub fn stands(&self, registration: &str) -> bool {
        self.by_registration.contains_key(registration)
    }
}
