//! What instances serve: results of their reflection come in, their views change. The node holds descriptors up to a
//! limit; over it an instance is still routed, and its status says why it has no descriptors.

use std::{collections::BTreeSet, sync::Arc};

use super::{Entry, InstanceTable, View};
use crate::agent::{
    key::InstanceKey,
    reflect::{ReflectError, Told},
    schema::Schema,
    served::{Reflected, Served},
};

/// What the descriptors of all instances of this node may cost in memory, equal ones counted once.
pub const MAX_HELD_COST: usize = 128 * 1024 * 1024;

/// What is said of an instance whose descriptors went over the bound.
fn too_many() -> String {
    format!(
        "the descriptors of this node's services take {} MiB of memory, the most that they may: its own are left out",
        MAX_HELD_COST >> 20
    )
}

impl InstanceTable {
    /// The services that the instance's reflection lists; their descriptors are still being asked for.
    pub fn listed(&mut self, key: &InstanceKey, registration: &str, names: &[String]) -> bool {
        self.learn(key, registration, |entry| {
            let reflected = entry.reflected.get_or_insert_default();
            names.clone_into(&mut reflected.names);
            entry.asked = true;
            Missing::AsBefore
        })
    }

    /// What it told in the end. What was known of its descriptors stays if they did not come whole this time.
    pub fn told(&mut self, key: &InstanceKey, registration: &str, told: Told) -> bool {
        self.learn(key, registration, |entry| {
            let Told {
                mut reflected,
                lacking,
            } = told;
            if lacking.as_ref().is_some_and(ReflectError::is_partial)
                && let Some(before) = entry.reflected.take()
                && before.schema.is_some()
            {
                reflected.schema = before.schema;
            }
            entry.reflected = Some(reflected);
            entry.asked = true;
            lacking.map_or(Missing::Nothing, Missing::Part)
        })
    }

    /// It told nothing: what is known stays.
    pub fn not_told(&mut self, key: &InstanceKey, registration: &str, why: ReflectError) -> bool {
        self.learn(key, registration, |entry| {
            entry.asked |= why.is_answer();
            Missing::Answer(why)
        })
    }

    /// `f` changes what is known, and says what is missing from now on.
    fn learn(
        &mut self,
        key: &InstanceKey,
        registration: &str,
        f: impl FnOnce(&mut Entry) -> Missing,
    ) -> bool {
        let stands = |entry: &Entry| &*entry.view.registration == registration;
        // Taken out for so long, so that the others are at hand.
        let Some(mut entry) = self.entries.remove(key) else {
            return false;
        };
        if !stands(&entry) {
            self.entries.insert(key.clone(), entry);
            return false;
        }
        let (before, was_asked) = (Arc::clone(&entry.view), entry.asked);
        let missing = f(&mut entry);
        let Served { protos, schema } = Served::of(&entry.declared, entry.reflected.as_ref());
        let mut view = View::clone(&before);
        match missing {
            Missing::AsBefore => {}
            missing => view.schema_reason = missing.reason(&entry, !protos.is_empty()),
        }
        view.protos = protos;
        entry.view = Arc::new(view);
        self.hold(&mut entry, schema);
        let changed = *entry.view != *before;
        if entry.view.protos != before.protos {
            self.claims.add(&entry.view);
            self.claims.remove(&before);
        }
        if !changed {
            entry.view = before;
        }
        // Who waits until all have been asked looks again.
        let asked = entry.asked && !was_asked;
        self.entries.insert(key.clone(), entry);
        self.version += u64::from(changed || asked);
        changed
    }

    /// Gives an entry that is not among the others its descriptors: equal ones are held once, and what goes over the bound
    /// is left out with a reason.
    pub(super) fn hold(&self, entry: &mut Entry, schema: Option<Schema>) {
        let mut full = false;
        let mut keep = |schema: &mut Option<Schema>| {
            if let Some(wanted) = schema.take() {
                *schema = self.held(&wanted);
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

    /// The same descriptors as they are held already, or these if there is room.
    fn held(&self, wanted: &Schema) -> Option<Schema> {
        let all = || self.entries.values().flat_map(Entry::schemas);
        if let Some(same) = all().find(|held| held.sha256 == wanted.sha256) {
            return Some(same.clone());
        }
        let mut seen = BTreeSet::new();
        let distinct = all().filter(|held| seen.insert(held.sha256.as_str()));
        let spent: usize = distinct.map(Schema::cost).sum();
        (spent + wanted.cost() <= MAX_HELD_COST).then(|| wanted.clone())
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

/// What is not known of an instance after an answer.
enum Missing {
    /// It is still being asked.
    AsBefore,
    Nothing,
    /// A part, which it did not tell.
    Part(ReflectError),
    /// It told nothing; what it told before stays.
    Answer(ReflectError),
}

impl Missing {
    /// What status shows: nothing is missing where its own descriptors are at hand.
    fn reason(&self, entry: &Entry, protos_known: bool) -> String {
        let kept = entry
            .reflected
            .as_ref()
            .is_some_and(Reflected::is_something);
        match self {
            _ if entry.declared.schema.is_some() => String::new(),
            Self::AsBefore | Self::Nothing => String::new(),
            Self::Answer(why) if kept => format!("{why}; what it told before stays"),
            Self::Part(why) | Self::Answer(why) => why.reason(protos_known),
        }
    }
}
