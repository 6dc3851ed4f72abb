//! One header list (request, response or trailers) in one reusable arena, used by HPACK, the
//! connection and the application. Names and values are bytes in the order of the wire, duplicates
//! kept, pseudo-headers first. No rules of validity and no meaning of gRPC.

use std::fmt;

use crate::headers::FieldClass;
use crate::hpack::Marks;

/// A header list: every name and value in one arena, so that a list that is cleared and filled
/// again allocates nothing.
#[derive(Clone, Default)]
pub struct Fields {
    arena: Vec<u8>,
    entries: Vec<Entry>,
}

/// One header field of a [`Fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Lower-case as on the wire; pseudo-headers with their colon.
    pub name: &'a [u8],
    /// The value, not interpreted.
    pub value: &'a [u8],
    /// Came as a never-indexed literal (RFC 7541 §6.2.3) and must leave as one.
    pub sensitive: bool,
}

/// The position of a field in the arena: its name, directly followed by its value.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    name_len: usize,
    value_len: usize,
    marks: Marks,
    sensitive: bool,
}

/// A field of the HPACK tables: its bytes and its marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marked<'a> {
    /// The name and the value.
    pub(crate) bytes: &'a [u8],
    pub(crate) name_len: usize,
    pub(crate) marks: Marks,
    pub(crate) sensitive: bool,
}

impl<'a> Marked<'a> {
    #[inline]
    pub(crate) fn name(&self) -> &'a [u8] {
        self.bytes.get(..self.name_len).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        self.bytes.get(self.name_len..).unwrap_or_default()
    }
}

/// A field for the rules of validity; its bytes are only read when needed.
#[derive(Clone, Copy)]
pub(crate) struct ClassifiedField<'a> {
    arena: &'a [u8],
    entry: &'a Entry,
}

impl<'a> ClassifiedField<'a> {
    #[inline]
    pub(crate) fn class(&self) -> FieldClass {
        match self.entry.marks.class {
            FieldClass::Unclassified => {
                let field = field_in(self.arena, self.entry);
                FieldClass::of(field.name, field.value)
            }
            known => known,
        }
    }

    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        field_in(self.arena, self.entry).value
    }
}

impl Fields {
    /// An empty list; allocates at the first push.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the list and keeps its memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
    }

    /// How many fields there are, pseudo-headers included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The fields for the rules of validity.
    pub(crate) fn iter_classified(&self) -> impl Iterator<Item = ClassifiedField<'_>> {
        let arena = &self.arena;
        self.entries
            .iter()
            .map(move |entry| ClassifiedField { arena, entry })
    }

    /// Appends a field. The caller must append pseudo-headers first.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.append(name, value, false);
    }

    /// Appends a field that no HPACK table on the way may store (RFC 7541 §7.1.3).
    pub fn push_sensitive(&mut self, name: &[u8], value: &[u8]) {
        self.append(name, value, true);
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries
            .iter()
            .map(|entry| field_in(&self.arena, entry))
    }

    /// The first value of that name.
    #[inline]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// All values of that name, in order.
    pub fn get_all<'a, 'n>(
        &'a self,
        name: &'n [u8],
    ) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.entries
            .iter()
            .filter(move |entry| is_named(&self.arena, entry, name))
            .map(|entry| field_in(&self.arena, entry).value)
    }

    /// Removes all fields of that name; returns their number.
    pub fn remove(&mut self, name: &[u8]) -> usize {
        let before = self.entries.len();
        let arena = &self.arena;
        self.entries.retain(|entry| !is_named(arena, entry, name));
        before - self.entries.len()
    }

    /// Keeps the fields for which `keep` is true, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let arena = &self.arena;
        self.entries.retain(|entry| keep(field_in(arena, entry)));
    }

    /// Sets the value of the first field of that name (not sensitive) and removes the others of that name;
    /// appends the field if there is none.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let arena = &mut self.arena;
        let named = |entry: &Entry| is_named(arena, entry, name);
        let Some(first) = self.entries.iter().position(named) else {
            self.push(name, value);
            return;
        };
        let mut at = 0;
        self.entries.retain(|entry| {
            at += 1;
            at <= first + 1 || !is_named(arena, entry, name)
        });
        if let Some(entry) = self.entries.get_mut(first) {
            overwrite(arena, entry, name, value);
        }
    }

    /// The size of the list as RFC 9113 §6.5.2 counts it: name, value and 32 for each field.
    pub fn list_bytes(&self) -> usize {
        let sizes = self
            .entries
            .iter()
            .map(|e| e.name_len + e.value_len + FIELD_OVERHEAD);
        sizes.sum()
    }

    /// The memory of the list in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.arena.len() + self.entries.len() * size_of::<Entry>()
    }

    /// The allocated memory, used or not.
    pub fn capacity_bytes(&self) -> usize {
        self.arena.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// `:method`
    pub fn method(&self) -> Option<&[u8]> {
        self.get(b":method")
    }

    /// `:path`
    #[inline]
    pub fn path(&self) -> Option<&[u8]> {
        self.get(b":path")
    }

    /// `:authority`
    #[inline]
    pub fn authority(&self) -> Option<&[u8]> {
        self.get(b":authority")
    }

    /// `:scheme`
    pub fn scheme(&self) -> Option<&[u8]> {
        self.get(b":scheme")
    }

    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.get(b":protocol")
    }

    /// `:status`, if it is there and is three digits.
    pub fn status(&self) -> Option<u16> {
        match self.get(b":status")? {
            [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                let digit = |ascii: u8| u16::from(ascii - b'0');
                Some(digit(*a) * 100 + digit(*b) * 10 + digit(*c))
            }
            _ => None,
        }
    }

    /// The fields with their marks, for an encoder.
    #[inline]
    pub(crate) fn iter_marked(&self) -> impl Iterator<Item = Marked<'_>> {
        self.entries.iter().map(|entry| Marked {
            bytes: bytes_in(&self.arena, entry),
            name_len: entry.name_len,
            marks: entry.marks,
            sensitive: entry.sensitive,
        })
    }

    /// Appends a field of a table with its marks.
    #[inline]
    pub(crate) fn push_marked(&mut self, field: &Marked<'_>) {
        let start = self.arena.len();
        self.arena.extend_from_slice(field.bytes);
        let value_len = field.bytes.len() - field.name_len;
        self.commit(start, field.name_len, value_len, field.marks, false);
    }

    /// The arena itself: a decoder writes a name and then its value to the end, and says with
    /// [`Fields::commit`] that they are a field, or takes them back with [`Fields::rewind`].
    #[inline]
    pub(crate) fn arena(&mut self) -> &mut Vec<u8> {
        &mut self.arena
    }

    /// Makes a field of what was written to the arena from `start` on.
    #[inline]
    pub(crate) fn commit(
        &mut self,
        start: usize,
        name_len: usize,
        value_len: usize,
        marks: Marks,
        sensitive: bool,
    ) {
        self.entries.push(Entry {
            start,
            name_len,
            value_len,
            marks,
            sensitive,
        });
    }

    /// Takes back what was written to the arena since it was `arena_len` long.
    pub(crate) fn rewind(&mut self, arena_len: usize) {
        self.arena.truncate(arena_len);
    }

    fn append(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        let start = self.arena.len();
        self.arena.reserve(name.len() + value.len());
        self.arena.extend_from_slice(name);
        self.arena.extend_from_slice(value);
        self.commit(start, name.len(), value.len(), Marks::default(), sensitive);
    }
}

/// What RFC 7541 §4.1 and RFC 9113 §6.5.2 add to the size of each field.
pub(crate) const FIELD_OVERHEAD: usize = 32;

#[inline]
fn bytes_in<'a>(arena: &'a [u8], entry: &Entry) -> &'a [u8] {
    let end = entry.start + entry.name_len + entry.value_len;
    arena.get(entry.start..end).unwrap_or_default()
}

/// Most names differ in length: their bytes are not looked at.
#[inline]
fn is_named(arena: &[u8], entry: &Entry, name: &[u8]) -> bool {
    entry.name_len == name.len() && field_in(arena, entry).name == name
}

#[inline]
fn field_in<'a>(arena: &'a [u8], entry: &Entry) -> Field<'a> {
    let bytes = bytes_in(arena, entry);
    let (name, value) = bytes.split_at_checked(entry.name_len).unwrap_or_default();
    Field {
        name,
        value,
        sensitive: entry.sensitive,
    }
}

/// Puts a new value in the old one's place if it fits there, else the whole field at the end of
/// the arena.
fn overwrite(arena: &mut Vec<u8>, entry: &mut Entry, name: &[u8], value: &[u8]) {
    let old = entry.start + entry.name_len;
    let fits = value.len() <= entry.value_len;
    match arena.get_mut(old..old + value.len()) {
        Some(place) if fits => place.copy_from_slice(value),
        _ => {
            entry.start = arena.len();
            arena.extend_from_slice(name);
            arena.extend_from_slice(value);
        }
    }
    entry.value_len = value.len();
    entry.marks = entry.marks.of_name();
    entry.sensitive = false;
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Fields {}

impl fmt::Debug for Fields {
    /// Sensitive values are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for field in self.iter() {
            let name = String::from_utf8_lossy(field.name);
            match field.sensitive {
                true => map.entry(&name, &"***"),
                false => map.entry(&name, &String::from_utf8_lossy(field.value)),
            };
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests;
