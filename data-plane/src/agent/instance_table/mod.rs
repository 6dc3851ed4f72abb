//! The table of this node's instances: which are registered, and their health. Input: registrations, beats, files,
//! check results and the time (`now` is a parameter). Output: immutable views, and a version that rises with each
//! change. No sockets, no tasks, no clock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, Protocol, health_check::Kind};

use super::{
    key::InstanceKey,
    removal_log::{Cause, Causes, RemovalLog},
    served::{Declared, Reflected},
};

mod claims;
mod files;
mod joining;
mod left;
mod schemas;
mod types;

pub use claims::ClaimOrder;
pub use schemas::MAX_DESCRIPTOR_COST;
pub use types::{
    FileUpdateResult, Joined, Leaving, Refusal, Refused, Source, Verdict, View, Views,
};

/// The most instances of one node.
pub const MAX_INSTANCES: usize = 10_000;

/// A draining instance that nobody removes is removed after this time: twice the longest wait for clients.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The reason of a draining instance.
pub const DRAINING: &str = "it is draining: it finishes its calls and gets no new ones";

#[derive(Debug)]
struct Entry {
    view: Arc<View>,
    source: Source,
    /// When it is removed unless a beat comes; `None` for instances of files.
    beat_by: Option<Instant>,
    /// The newest keep-alive stream; only its end removes the instance.
    stream: Option<u64>,
    /// Why it drains, if it did not ask for it.
    unasked: Option<Cause>,
    /// What its registration declares that it serves.
    declared: Declared,
    /// What its reflection reported last.
    reflected: Option<Reflected>,
    /// Reflection has been tried: the instance answered, or its time ran out.
    reflection_done: bool,
    /// What the control plane has decided on this registration.
    verdict: Verdict,
    /// The control plane rejects it, so it counts as unhealthy. Holds what its checks report meanwhile.
    refused: Option<Checks>,
}

/// The last result of an instance's checks.
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
    removals: RemovalLog,
    departed: left::Departed,
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
            removals: RemovalLog::default(),
            departed: left::Departed::new(),
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

    /// The order in which services claimed their paths.
    #[must_use]
    pub fn claims(&self) -> &ClaimOrder {
        &self.claims
    }

    /// Restores the order of this node's last process; called before its instances are restored.
    pub fn restore_claims(&mut self, places: &[(String, String)]) {
        self.claims.restore(places);
    }

    #[must_use]
    pub fn view(&self, key: &InstanceKey) -> Option<&Arc<View>> {
        self.entries.get(key).map(|entry| &entry.view)
    }

    /// The instances that registered themselves, for the state dir.
    #[must_use]
    pub fn registered(&self) -> Vec<Arc<View>> {
        let own = |entry: &&Entry| !matches!(entry.source, Source::File(_) | Source::Leaving);
        self.entries
            .values()
            .filter(own)
            .map(|entry| Arc::clone(&entry.view))
            .collect()
    }

    /// A keep-alive stream begins and becomes the newest of its registration. `None`: the registration is unknown, the
    /// instance must register again.
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

    /// Records a beat. Returns the instance's health and its reason; `None`: the registration is gone.
    pub fn beat(&mut self, registration: &str, now: Instant) -> Option<(Health, String)> {
        let ttl = self.ttl;
        let entry = self.entry_of(registration)?;
        if entry.source != Source::Leaving {
            entry.beat_by = now.checked_add(ttl);
        }
        Some((entry.view.health, entry.view.reason.clone()))
    }

    /// A keep-alive stream broke or missed its beat: its instance is removed at once, unless it has a newer stream.
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

    /// The instance gets no new calls from now on. It is removed when it is deregistered, or after `LEAVE_TIMEOUT` and
    /// `finish`, the longest wait for its calls.
    pub fn drain(
        &mut self,
        registration: &str,
        unasked: Option<Cause>,
        now: Instant,
        finish: Duration,
    ) -> Option<Leaving> {
        let Some(key) = self.by_registration.get(registration).cloned() else {
            return self.departed(registration);
        };
        self.drain_key(&key, unasked, now, finish)
    }

    fn drain_key(
        &mut self,
        key: &InstanceKey,
        unasked: Option<Cause>,
        now: Instant,
        finish: Duration,
    ) -> Option<Leaving> {
        let entry = self.entries.get_mut(key)?;
        // A second request does not prolong it.
        if entry.source != Source::Leaving {
            entry.source = Source::Leaving;
            entry.unasked = unasked;
            entry.beat_by = now.checked_add(LEAVE_TIMEOUT.saturating_add(finish));
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

    /// Removes an instance: at its own request, or for a cause.
    pub fn deregister(
        &mut self,
        registration: &str,
        unasked: Option<Cause>,
    ) -> Option<InstanceKey> {
        let key = self.by_registration.get(registration)?.clone();
        self.remove_instance(&key, unasked)?;
        Some(key)
    }

    /// Removes the instances whose beat is overdue. Returns them with the cause; `None` for those that were
    /// draining at their own request.
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
            if let Some(cause) = self.remove_instance(&key, Some(cause)) {
                out.push((key, cause));
            }
        }
        out
    }

    /// Removes an instance and returns the final cause: that of the draining if it was draining, else the given one.
    fn remove_instance(
        &mut self,
        key: &InstanceKey,
        unasked: Option<Cause>,
    ) -> Option<Option<Cause>> {
        let entry = self.remove_entry(key)?;
        self.version += 1;
        let cause = match entry.source {
            Source::Leaving => entry.unasked,
            _ => unasked,
        };
        let registration = Arc::clone(&entry.view.registration);
        self.removals
            .record(key.clone(), registration, cause.clone(), self.version);
        Some(cause)
    }

    /// The removals that the control plane does not know of; it knows all changes up to version `known`.
    pub fn gone(&mut self, known: u64) -> Causes {
        self.removals.acknowledge(known);
        self.removals.causes()
    }

    /// The earliest time at which an instance expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| entry.beat_by)
            .min()
    }

    /// Sets the result of a check. Ignored if the registration has been replaced or drains.
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

    /// The check of this registration that is in use. Returns true if it is another one.
    pub fn set_checked_by(&mut self, key: &InstanceKey, registration: &str, kind: Kind) -> bool {
        self.change(key, registration, |view| view.checked_by = kind)
    }

    /// The control plane rejects this registration for the given reason, or accepts it; then its checks count again.
    /// Returns true if something visible changed.
    pub fn set_refused(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        refusal: Option<&Refusal>,
    ) -> bool {
        let entry = self.entries.get_mut(key);
        let Some(entry) = entry.filter(|entry| &*entry.view.registration == registration) else {
            return false;
        };
        entry.verdict = match refusal {
            Some(refusal) => Verdict::Refused(refusal.clone()),
            None => Verdict::Accepted,
        };
        let (health, reason) = match (refusal, entry.refused.take()) {
            (None, None) => return false,
            (None, Some(Checks { health, reason })) => (health, reason),
            (Some(refusal), before) => {
                let checks = before.unwrap_or_else(|| Checks {
                    health: entry.view.health,
                    reason: entry.view.reason.clone(),
                });
                entry.refused = Some(checks);
                (Health::Unhealthy, refusal.to_string())
            }
        };
        self.change(key, registration, |view| {
            if view.health != Health::Draining {
                view.health = health;
                view.reason = reason;
            }
        })
    }

    /// What the control plane has decided on a registration; `None` if the registration is gone.
    #[must_use]
    pub fn verdict(&self, registration: &str) -> Option<&Verdict> {
        let key = self.by_registration.get(registration)?;
        self.entries.get(key).map(|entry| &entry.verdict)
    }

    /// Returns true if something visible changed.
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

    /// Whether every instance has had its first check, and every healthy gRPC instance has reported what it serves or
    /// has failed to.
    #[must_use]
    pub fn checks_done(&self) -> bool {
        self.entries.values().all(|entry| {
            let view = &entry.view;
            let grpc = view.instance.protocol == i32::from(Protocol::Grpc);
            match view.health {
                Health::Healthy => !grpc || entry.reflection_done || !view.protos.is_empty(),
                _ => view.reason != UNCHECKED,
            }
        })
    }

    /// Whether the table has this registration.
    #[must_use]
    pub fn is_registered(&self, registration: &str) -> bool {
        self.by_registration.contains_key(registration)
    }
}
