//! Plans: what the JSON reader and writer know of a schema, compiled once when it arrives. Messages and enums stand in arenas
//! and name each other by index, so recursive types are no special case. Names are escaped and quoted here, once. Nothing here
//! reads a message, and no descriptor is kept.
//!
//! Memory: about 200 bytes and four copies of its name per field, 40 bytes and two copies per enum value, and one slot of
//! 8 bytes for each byte-wise different name, at most half of the slots used. [`MAX_TYPES`] and [`MAX_FIELDS`] bound it for a
//! hostile schema.

mod compile;
mod enums;
mod message;
mod names;
mod well_known;

#[cfg(test)]
mod tests;

pub use enums::EnumPlan;
pub use message::{Cardinality, FieldPlan, Kind, MessagePlan};
pub use well_known::WellKnown;

use rustc_hash::FxHashMap;

use crate::fault::{Fault, shown};

/// Messages and enums of one set, at most.
pub const MAX_TYPES: usize = 50_000;
/// Fields and enum values of one set, at most.
pub const MAX_FIELDS: usize = 500_000;

/// A message of a [`PlanSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u32);

/// An enum of a [`PlanSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EnumId(u32);

/// A field of a message of a [`PlanSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldRef {
    pub message: MessageId,
    /// Place in [`MessagePlan::fields`].
    pub index: u32,
}

/// Why a schema cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the schema has no message {0}")]
    NoSuchMessage(String),
    #[error("the schema has more than {MAX_TYPES} messages and enums")]
    TooManyTypes,
    #[error("the schema has more than {MAX_FIELDS} fields and enum values")]
    TooManyFields,
}

/// The plans of all messages that can be reached from the roots.
#[derive(Debug)]
pub struct PlanSet {
    messages: Vec<MessagePlan>,
    enums: Vec<EnumPlan>,
    by_name: FxHashMap<Box<str>, MessageId>,
}

impl PlanSet {
    /// The plan of a message by its full name, without a leading dot.
    pub fn find(&self, full_name: &str) -> Option<MessageId> {
        self.by_name.get(full_name).copied()
    }

    /// Panics for an id of another set with more messages.
    pub fn message(&self, id: MessageId) -> &MessagePlan {
        &self.messages[id.0 as usize]
    }

    /// Panics for an id of another set with more enums.
    pub fn enumeration(&self, id: EnumId) -> &EnumPlan {
        &self.enums[id.0 as usize]
    }

    pub fn field(&self, field: FieldRef) -> &FieldPlan {
        &self.message(field.message).fields()[field.index as usize]
    }

    /// How many messages were compiled.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The key and value fields of a map field's entry.
    pub(crate) fn entry(&self, entry: MessageId) -> Option<(&FieldPlan, &FieldPlan)> {
        match self.message(entry).fields() {
            [key, value] => Some((key, value)),
            _ => None,
        }
    }

    /// Follows a field path (`user.address.city`) from a message, each part by its JSON or its proto name. All parts but the
    /// last must be singular messages.
    pub fn field_path(&self, root: MessageId, path: &str) -> Result<Vec<FieldRef>, Box<Fault>> {
        let mut message = root;
        let mut found = Vec::new();
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let plan = self.message(message);
            let Some(index) = plan.find(part.as_bytes()) else {
                return Err(plan.unknown(part).in_field(shown(path)));
            };
            let field = &plan.fields()[index as usize];
            found.push(FieldRef { message, index });
            if parts.peek().is_none() {
                break;
            }
            match field.message_id() {
                Some(next) if field.cardinality == Cardinality::Singular => message = next,
                _ => {
                    let text = format!("{} is not a singular message", field.json_name);
                    return Err(Fault::new(format!("has no such field: {text}")).in_field(path));
                }
            }
        }
        Ok(found)
    }
}
