//! The store as a state machine: the invariants of `store/mod.rs` without disk, thread or clock. Each transaction
//! returns its result and the changes that an engine must make durable before it publishes them. Reads see only what is
//! published.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::store::{
    Changes, Compare, Event, KeyValue, LeaseId, Op, Range, Revision, StoreCounters, StoreError,
    Txn, TxnResult, bounds, history::History, leases::Leases,
};

/// The part of the machine that is stored on disk.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// 0 for an empty store.
    pub(crate) revision: Revision,
    pub(crate) items: Vec<KeyValue>,
    pub(crate) leases: Vec<(LeaseId, Duration)>,
    pub(crate) last_lease: u64,
}

#[derive(Debug)]
pub(crate) struct Machine {
    map: BTreeMap<Arc<str>, KeyValue>,
    attached: HashMap<LeaseId, BTreeSet<Arc<str>>>,
    leases: Leases,
    last_lease: u64,
    history: History,
    max_value_bytes: usize,
    pub(crate) counters: StoreCounters,
}

impl Machine {
    /// Leases get a full TTL from `now` on.
    pub(crate) fn new(saved: Saved, max_value_bytes: usize, now: Instant) -> Self {
        let mut machine = Self {
            map: BTreeMap::new(),
            attached: HashMap::new(),
            leases: Leases::new(now),
            last_lease: saved.last_lease,
            history: History::new(saved.revision.max(Revision(1))),
            max_value_bytes,
            counters: StoreCounters::default(),
        };
        for (id, ttl) in saved.leases {
            machine.leases.grant(id, ttl, now);
        }
        for item in saved.items {
            if let Some(lease) = item.lease {
                machine
                    .attached
                    .entry(lease)
                    .or_default()
                    .insert(Arc::clone(&item.key));
            }
            machine.map.insert(Arc::clone(&item.key), item);
        }
        machine
    }

    /// The machine after its engine had to return to the saved state. Earlier watches have to read the state again.
    pub(crate) fn restarted(&self, saved: Saved, now: Instant) -> Self {
        let mut machine = Self::new(saved, self.max_value_bytes, now);
        machine
            .history
            .set_max_revisions(self.history.max_revisions());
        machine.counters = self.counters;
        machine
    }

    pub(crate) fn set_max_history(&mut self, revisions: usize) {
        self.history.set_max_revisions(revisions);
    }

    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    pub(crate) fn last_lease(&self) -> u64 {
        self.last_lease
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn counters(&self) -> StoreCounters {
        StoreCounters {
            leases: self.leases.len() as u64,
            keys: self.map.len() as u64,
            ..self.counters
        }
    }

    /// Applies a transaction; a refused one changes nothing.
    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<(TxnResult, Option<Changes>), StoreError> {
        self.counters.requests += 1;
        bounds::check(txn, self.max_value_bytes)?;
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        for op in ops {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
                && !self.leases.contains(*lease)
            {
                return Err(StoreError::LeaseNotFound(*lease));
            }
        }
        let changes = self.apply(ops.iter().cloned());
        Ok((
            TxnResult {
                succeeded,
                revision: self.history.newest(),
            },
            changes,
        ))
    }

    pub(crate) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        self.counters.requests += 1;
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.grant(id, ttl, now);
        id
    }

    pub(crate) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<(), StoreError> {
        if self.leases.keep_alive(lease, now) {
            Ok(())
        } else {
            Err(StoreError::LeaseNotFound(lease))
        }
    }

    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Result<Option<Changes>, StoreError> {
        self.counters.requests += 1;
        if self.leases.contains(lease) {
            Ok(self.end(lease))
        } else {
            Err(StoreError::LeaseNotFound(lease))
        }
    }

    /// Ends the expired leases.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(LeaseId, Option<Changes>)> {
        let expired = self.leases.expired(now);
        self.counters.leases_expired += expired.len() as u64;
        expired
            .into_iter()
            .map(|lease| (lease, self.end(lease)))
            .collect()
    }

    /// Everything applied so far is durable now and becomes visible.
    pub(crate) fn publish(&mut self) {
        self.history.publish();
    }

    pub(crate) fn get(&self, key: &str) -> Option<KeyValue> {
        // The first unpublished change of the key has its published state in `before`.
        let hidden = self.history.after(self.history.published());
        for changes in hidden {
            if let Some(event) = changes.events.iter().find(|event| &*event.key == key) {
                return event.before.clone();
            }
        }
        self.map.get(key).cloned()
    }

    pub(crate) fn range(
        &self,
        prefix: &str,
        at: Option<Revision>,
        keys_only: bool,
    ) -> Result<Range, StoreError> {
        let revision = self.history.check(at)?;
        // Undo later changes, newest first: the overlay ends up with the oldest state of each key.
        let mut overlay: BTreeMap<&Arc<str>, Option<&KeyValue>> = BTreeMap::new();
        for changes in self.history.after(revision).rev() {
            for event in changes
                .events
                .iter()
                .filter(|event| event.key.starts_with(prefix))
            {
                overlay.insert(&event.key, event.before.as_ref());
            }
        }
        let present = self
            .map
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| !overlay.contains_key(key))
            .map(|(_, item)| item);
        let mut items: Vec<KeyValue> = present
            .chain(overlay.values().filter_map(|before| *before))
            .cloned()
            .collect();
        if !overlay.is_empty() {
            items.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        if keys_only {
            for item in &mut items {
                item.value = Bytes::new();
            }
        }
        Ok(Range { revision, items })
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::ModRevision(key, at) => {
                self.map
                    .get(key)
                    .map_or(Revision(0), |item| item.mod_revision)
                    == *at
            }
            Compare::CreateRevision(key, at) => {
                self.map
                    .get(key)
                    .map_or(Revision(0), |item| item.create_revision)
                    == *at
            }
        }
    }

    fn end(&mut self, lease: LeaseId) -> Option<Changes> {
        self.leases.end(lease);
        let keys = self.attached.remove(&lease).unwrap_or_default();
        self.apply(keys.into_iter().map(|key| Op::Delete { key }))
    }

    fn apply(&mut self, ops: impl Iterator<Item = Op>) -> Option<Changes> {
        let revision = self.history.newest().next();
        let events: Vec<Event> = ops.filter_map(|op| self.change(op, revision)).collect();
        if events.is_empty() {
            return None;
        }
        self.counters.changes += events.len() as u64;
        let changes = Changes {
            revision,
            events: events.into(),
        };
        self.history.push(changes.clone());
        Some(changes)
    }

    fn change(&mut self, op: Op, revision: Revision) -> Option<Event> {
        let (key, now) = match op {
            Op::Put { key, value, lease } => {
                let create_revision = self
                    .map
                    .get(&key)
                    .map_or(revision, |before| before.create_revision);
                let item = KeyValue {
                    key: Arc::clone(&key),
                    value,
                    create_revision,
                    mod_revision: revision,
                    lease,
                };
                (key, Some(item))
            }
            Op::Delete { key } => (key, None),
        };
        let before = match &now {
            Some(item) => self.map.insert(Arc::clone(&key), item.clone()),
            None => self.map.remove(&key),
        };
        if let Some(lease) = before.as_ref().and_then(|before| before.lease)
            && let Some(keys) = self.attached.get_mut(&lease)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.attached.remove(&lease);
            }
        }
        if let Some(lease) = now.as_ref().and_then(|now| now.lease) {
            self.attached
                .entry(lease)
                .or_default()
                .insert(Arc::clone(&key));
        }
        (now.is_some() || before.is_some()).then_some(Event { key, now, before })
    }
}

#[cfg(test)]
mod tests;
