//! What instances serve. Input: the results of their reflection. Output: changed views. The node keeps descriptors up
//! to a limit; over it an instance is still routed, and its status shows why it has no descriptors.

use std::{collections::BTreeSet, sync::Arc};

use super::{Entry, InstanceTable, View};
use crate::agent::{
    key::InstanceKey,
    reflect::{ReflectError, ReflectionReport},
    schema::Schema,
    served::{Reflected, Served},
};

/// The most memory that the descriptors of all instances of this node may take; equal ones count once.
pub const MAX_DESCRIPTOR_COST: usize = 128 * 1024 * 1024;

/// The reason for an instance whose descriptors exceeded the bound.
fn too_many() -> String {
    format!(
        "the descriptors of this node's services take {} MiB of memory, the limit: its own are \
         omitted",
        MAX_DESCRIPTOR_COST >> 20
    )
}

impl InstanceTable {
    /// The services that the instance's reflection lists; their descriptors are still being requested.
    pub fn listed(&mut self, key: &InstanceKey, registration: &str, names: &[String]) -> bool {
        self.update_reflected(key, registration, |entry| {
            let reflected = entry.reflected.get_or_insert_default();
            names.clone_into(&mut reflected.names);
            entry.reflection_done = true;
            Missing::AsBefore
        })
    }

    /// The final result of a reflection. Known descriptors are kept if this time they did not come completely.
    pub fn report(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        report: ReflectionReport,
    ) -> bool {
        self.update_reflected(key, registration, |entry| {
            let ReflectionReport {
                mut reflected,
                lacking,
            } = report;
            if lacking.as_ref().is_some_and(ReflectError::is_partial)
                && let Some(before) = entry.reflected.take()
                && before.schema.is_some()
            {
                reflected.schema = before.schema;
            }
            entry.reflected = Some(reflected);
            entry.reflection_done = true;
            lacking.map_or(Missing::Nothing, Missing::Part)
        })
    }

    /// Reflection failed: what is known is kept.
    pub fn report_failed(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        why: ReflectError,
    ) -> bool {
        self.update_reflected(key, registration, |entry| {
            entry.reflection_done |= why.is_answer();
            Missing::Answer(why)
        })
    }

    /// `f` changes what is known, and returns what is missing from now on.
    fn update_reflected(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        f: impl FnOnce(&mut Entry) -> Missing,
    ) -> bool {
        let is_registered = |entry: &Entry| &*entry.view.registration == registration;
        // Taken out of the map for the moment, so that `store_descriptors` can read the other entries.
        let Some(mut entry) = self.entries.remove(key) else {
            return false;
        };
        if !is_registered(&entry) {
            self.entries.insert(key.clone(), entry);
            return false;
        }
        let (before, was_done) = (Arc::clone(&entry.view), entry.reflection_done);
        let missing = f(&mut entry);
        let Served { protos, schema } = Served::of(&entry.declared, entry.reflected.as_ref());
        let mut view = View::clone(&before);
        match missing {
            Missing::AsBefore => {}
            missing => view.schema_reason = missing.reason(&entry, !protos.is_empty()),
        }
        view.protos = protos;
        entry.view = Arc::new(view);
        self.store_descriptors(&mut entry, schema);
        let changed = *entry.view != *before;
        if entry.view.protos != before.protos {
            self.claims.add(&entry.view);
            self.claims.remove(&before);
        }
        if !changed {
            entry.view = before;
        }
        // Wakes those that wait for the reflection of all instances.
        let newly_done = entry.reflection_done && !was_done;
        self.entries.insert(key.clone(), entry);
        self.version += u64::from(changed || newly_done);
        changed
    }

    /// Stores the descriptors of an entry that is not in the map. Equal ones are shared; those over the bound are left
    /// out, with a reason.
    pub(super) fn store_descriptors(&self, entry: &mut Entry, schema: Option<Schema>) {
        let mut full = false;
        let mut keep = |schema: &mut Option<Schema>| {
            if let Some(wanted) = schema.take() {
                *schema = self.stored_copy(&wanted);
                full |= schema.is_none();
            }
        };
        let mut schema = schema;
        keep(&mut schema);
        keep(&mut entry.declared.schema);
        if let Some(reflected) = &mut entry.reflected {
            keep(&mut reflected.schema);
        }
        let view = Arc::make_mut(&mut entry.view);
        view.schema = schema;
        if full {
            view.schema_reason = too_many();
        } else if let Some(fault) = entry
            .declared
            .schema
            .as_ref()
            .and_then(Schema::missing_import)
        {
            view.schema_reason = format!("its descriptor set {fault}");
        }
    }

    /// The stored copy of the same descriptors, or these if there is room.
    fn stored_copy(&self, wanted: &Schema) -> Option<Schema> {
        let all = || self.entries.values().flat_map(Entry::schemas);
        if let Some(same) = all().find(|stored| stored.sha256 == wanted.sha256) {
            return Some(same.clone());
        }
        let mut seen = BTreeSet::new();
        let distinct = all().filter(|stored| seen.insert(stored.sha256.as_str()));
        let spent: usize = distinct.map(Schema::cost).sum();
        (spent + wanted.cost() <= MAX_DESCRIPTOR_COST).then(|| wanted.clone())
    }
}

impl Entry {
    fn schemas(&self) -> impl Iterator<Item = &Schema> {
        let reflected = self.reflected.as_ref().and_then(|it| it.schema.as_ref());
        let all = [
            self.view.schema.as_ref(),
            self.declared.schema.as_ref(),
            reflected,
        ];
        all.into_iter().flatten()
    }
}

/// What is not known of an instance after a reflection.
enum Missing {
    /// Reflection is still going on.
    AsBefore,
    Nothing,
    /// Reflection reported only a part.
    Part(ReflectError),
    /// Reflection failed; what it reported before is kept.
    Answer(ReflectError),
}

impl Missing {
    /// The reason that status shows; empty for an instance with declared descriptors.
    fn reason(&self, entry: &Entry, protos_known: bool) -> String {
        let kept = entry
            .reflected
            .as_ref()
            .is_some_and(Reflected::is_something);
        match self {
            _ if entry.declared.schema.is_some() => String::new(),
            Self::AsBefore | Self::Nothing => String::new(),
            Self::Answer(why) if kept => format!("{why}; its earlier answer stays in use"),
            Self::Part(why) | Self::Answer(why) => why.reason(protos_known),
        }
    }
}
