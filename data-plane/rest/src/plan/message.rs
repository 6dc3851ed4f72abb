//! The plan of one message: its fields by number for the way out, by both names for the way in.

use super::names::{NameTable, nearest};
use super::{EnumId, MessageId, WellKnown};
use crate::fault::{Fault, shown};
use crate::json_write::escape;
use crate::wire;

/// The type of a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
    /// A message between a start and an end tag instead of behind a length.
    Group(MessageId),
}

impl Kind {
    /// The wire type of one value that is not packed.
    pub(crate) const fn wire_type(self) -> u8 {
        match self {
            Self::Double | Self::Fixed64 | Self::Sfixed64 => wire::FIXED64,
            Self::Float | Self::Fixed32 | Self::Sfixed32 => wire::FIXED32,
            Self::String | Self::Bytes | Self::Message(_) => wire::LEN,
            Self::Group(_) => wire::GROUP,
            _ => wire::VARINT,
        }
    }

    /// True for kinds of which a repeated field may be packed.
    pub(crate) const fn is_packable(self) -> bool {
        !matches!(
            self,
            Self::String | Self::Bytes | Self::Message(_) | Self::Group(_)
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    Singular,
    Repeated,
    /// The kind is the message of the entry: key 1, value 2.
    Map,
}

/// One field.
#[derive(Debug)]
pub struct FieldPlan {
    pub number: u32,
    pub kind: Kind,
    pub cardinality: Cardinality,
    /// Whether set and unset differ even for the zero value: messages, `optional`, members of a oneof, proto2.
    pub presence: bool,
    /// Whether a repeated field is written packed. Both forms are read.
    pub packed: bool,
    /// The oneof it is a member of, counted within the message; not for proto3's `optional`.
    pub oneof: Option<u32>,
    pub name: Box<str>,
    pub json_name: Box<str>,
    /// `"jsonName":` and `"proto_name":`, escaped.
    pub(crate) json_key: Box<[u8]>,
    pub(crate) proto_key: Box<[u8]>,
}

impl FieldPlan {
    pub(crate) fn keyed(mut self) -> Self {
        self.json_key = key(&self.json_name);
        self.proto_key = key(&self.name);
        self
    }

    /// The message of the value (of the entry for a map).
    pub fn message_id(&self) -> Option<MessageId> {
        match self.kind {
            Kind::Message(id) | Kind::Group(id) => Some(id),
            _ => None,
        }
    }

    pub(crate) fn is_named(&self, name: &[u8]) -> bool {
        self.json_name.as_bytes() == name || self.name.as_bytes() == name
    }
}

fn key(name: &str) -> Box<[u8]> {
    let mut out = Vec::with_capacity(name.len() + 3);
    escape::string(&mut out, name);
    out.push(b':');
    out.into()
}

/// One message.
#[derive(Debug)]
pub struct MessagePlan {
    name: Box<str>,
    well_known: WellKnown,
    /// By number, rising.
    fields: Box<[FieldPlan]>,
    oneofs: Box<[Box<str>]>,
    /// Place in `fields` plus one, by number, where numbers are dense; else empty.
    by_number: Box<[u32]>,
    by_name: NameTable,
}

impl MessagePlan {
    /// Takes the fields in any order.
    pub(super) fn new(
        name: &str,
        well_known: WellKnown,
        mut fields: Vec<FieldPlan>,
        oneofs: Vec<Box<str>>,
    ) -> Self {
        fields.sort_by_key(|field| field.number);
        let last = fields.last().map_or(0, |field| field.number as usize);
        let mut by_number = Vec::new();
        if last <= fields.len() * 4 + 64 {
            by_number.resize(last + 1, 0);
            for (place, field) in (1..).zip(&fields) {
                by_number[field.number as usize] = place;
            }
        }
        // JSON names first: where one field's JSON name is another's proto name, the JSON name counts
        let names = (0..)
            .zip(&fields)
            .map(|(at, field)| (&*field.json_name, at));
        let by_name = NameTable::new(names.chain((0..).zip(&fields).map(|(at, f)| (&*f.name, at))));
        Self {
            name: name.into(),
            well_known,
            fields: fields.into(),
            oneofs: oneofs.into(),
            by_number: by_number.into(),
            by_name,
        }
    }

    /// The full name, without a leading dot.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether JSON has a form of its own for it.
    pub fn well_known(&self) -> WellKnown {
        self.well_known
    }

    /// By number, rising.
    pub fn fields(&self) -> &[FieldPlan] {
        &self.fields
    }

    pub fn oneof_name(&self, oneof: u32) -> &str {
        &self.oneofs[oneof as usize]
    }

    pub(crate) fn oneof_count(&self) -> usize {
        self.oneofs.len()
    }

    /// The place of a field by its JSON or its proto name.
    pub fn find(&self, name: &[u8]) -> Option<u32> {
        self.by_name.find(name)
    }

    /// The place of a field by its number. `hint` is a place to look at first: fields mostly come in order.
    #[inline]
    pub(crate) fn find_number(&self, number: u32, hint: u32) -> Option<u32> {
        if self
            .fields
            .get(hint as usize)
            .is_some_and(|field| field.number == number)
        {
            return Some(hint);
        }
        if self.by_number.is_empty() {
            let at = self
                .fields
                .binary_search_by_key(&number, |field| field.number)
                .ok()?;
            return u32::try_from(at).ok();
        }
        self.by_number.get(number as usize)?.checked_sub(1)
    }

    /// The fault of a member that is no field, with the nearest name there is.
    pub(crate) fn unknown(&self, name: &str) -> Box<Fault> {
        let names = self
            .fields
            .iter()
            .flat_map(|field| [&*field.json_name, &*field.name]);
        let hint = match nearest(name, names) {
            Some(near) => format!("; did you mean {:?}?", shown(near)),
            None => String::new(),
        };
        Fault::new(format!(
            "has no field {:?} in {}{hint}",
            shown(name),
            shown(&self.name)
        ))
    }
}
