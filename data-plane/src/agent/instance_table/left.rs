//! Instances that leave while the process changes: what the next process has to know, and what the last one has left to
//! this one. An instance that left the last process has no entry here, but can still ask whether everybody knows.

use std::{collections::BTreeMap, sync::Arc};

use super::{InstanceTable, Leaving, MAX_INSTANCES, Source};
use crate::agent::{key::InstanceKey, left::LeftInstance};

/// The instances that left the last process, by registration, with the version of the change: at most as many as a node
/// can have.
pub(super) type Departed = BTreeMap<Arc<str>, (InstanceKey, u64)>;

impl InstanceTable {
    /// The instances that drain, and the removed ones that the control plane may not know of.
    #[must_use]
    pub fn left(&self) -> Vec<LeftInstance> {
        let draining = self.entries.iter();
        let draining = draining.filter(|(_, entry)| entry.source == Source::Leaving);
        let draining = draining.map(|(key, entry)| LeftInstance {
            key: key.clone(),
            registration: Arc::clone(&entry.view.registration),
            cause: entry.unasked.clone(),
        });
        draining.chain(self.removals.left()).collect()
    }

    /// An instance left the last process of this node. Returns true if it was in use here until now.
    pub fn restore_left(&mut self, left: LeftInstance) -> bool {
        let LeftInstance {
            key,
            registration,
            cause,
        } = left;
        let entry = self.entries.get(&key);
        let in_use = entry.is_some();
        // One that has come to this process has left only the last one.
        let is_back = entry.is_some_and(|entry| {
            entry.source != Source::Restored || entry.view.registration != registration
        });
        if is_back || self.departed.contains_key(&registration) {
            return false;
        }
        self.remove_entry(&key);
        self.version += 1;
        self.removals
            .record(key.clone(), Arc::clone(&registration), cause, self.version);
        if self.departed.len() >= MAX_INSTANCES {
            self.departed.pop_first();
        }
        self.departed.insert(registration, (key, self.version));
        in_use
    }

    /// Whether the last process left instances. Asked at the start, before they come back.
    #[must_use]
    pub fn had_predecessor(&self) -> bool {
        self.awaits_return() || !self.departed.is_empty()
    }

    /// Whether an instance of the last process may still come back.
    #[must_use]
    pub fn awaits_return(&self) -> bool {
        let mut entries = self.entries.values();
        entries.any(|entry| entry.source == Source::Restored)
    }

    /// An instance that left the last process.
    pub(super) fn departed(&self, registration: &str) -> Option<Leaving> {
        let (registration, (key, version)) = self.departed.get_key_value(registration)?;
        (!self.entries.contains_key(key)).then(|| Leaving {
            key: key.clone(),
            registration: Arc::clone(registration),
            version: *version,
        })
    }
}
