//! One header list (request, response or trailers) in one reusable arena: the room between HPACK,
//! the connection machine and the shell. Names and values come in and go out as bytes in the order
//! of the wire, duplicates kept, pseudo-headers first. No validity rules and no meaning of gRPC may
//! come in: those belong to the machine and to the shell.

use std::fmt;

use crate::hpack::hash::{field_hash, name_hash};

/// A header list: every name and value in one arena, so that a list that is cleared and filled
/// again allocates nothing.
#[derive(Clone, Default)]
pub struct Fields {
    arena: Vec<u8>,
    entries: Vec<Entry>,
}

/// One header field as it stands in a [`Fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Lower-case as on the wire; pseudo-headers with their colon.
    pub name: &'a [u8],
    /// The value, not interpreted.
    pub value: &'a [u8],
    /// Came as a never-indexed literal (RFC 7541 §6.2.3) and must leave as one.
    pub sensitive: bool,
}

/// Where a field lies in the arena. The hashes are those of [`crate::hpack::hash`], 0 when not
/// known yet: a decoder's table hands them on, so that an encoder need not hash the bytes again.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name_start: usize,
    name_len: usize,
    value_start: usize,
    value_len: usize,
    name_hash: u32,
    hash: u32,
    sensitive: bool,
}

/// What an encoder sees of a field: the field with its hashes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashed<'a> {
    pub(crate) field: Field<'a>,
    pub(crate) name_hash: u32,
    /// Hash of name and value; 0 when not known.
    pub(crate) hash: u32,
}

impl Hashed<'_> {
    /// The hash of name and value, computed now if the list does not know it.
    pub(crate) fn full_hash(&self) -> u32 {
        match self.hash {
            0 => field_hash(self.name_hash, self.field.value),
            known => known,
        }
    }
}

/// The part of the arena that one string takes, while its field is being put together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) len: usize,
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

    /// Appends a field. Pseudo-headers are pushed first, by the caller's care.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.append(name, value, false);
    }

    /// Appends a field that no HPACK table on the way may store (RFC 7541 §7.1.3).
    pub fn push_sensitive(&mut self, name: &[u8], value: &[u8]) {
        self.append(name, value, true);
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| self.field(entry))
    }

    /// The first value of that name.
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
            .filter(move |entry| self.slice(entry.name_start, entry.name_len) == name)
            .map(|entry| self.slice(entry.value_start, entry.value_len))
    }

    /// Takes out every field of that name and says how many there were.
    pub fn remove(&mut self, name: &[u8]) -> usize {
        let before = self.entries.len();
        self.retain(|field| field.name != name);
        before - self.entries.len()
    }

    /// Keeps the fields for which `keep` is true, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let arena = &self.arena;
        self.entries.retain(|entry| keep(field_in(arena, entry)));
    }

    /// Gives the first field of that name this value (not sensitive) in its place and drops the
    /// others of that name; appends the field if there is none.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let (arena, mut found) = (&mut self.arena, false);
        self.entries.retain_mut(|entry| {
            if slice_of(arena, entry.name_start, entry.name_len) != name {
                return true;
            }
            if found {
                return false;
            }
            found = true;
            overwrite(arena, entry, value);
            true
        });
        if !found {
            self.push(name, value);
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

    /// `:method`
    pub fn method(&self) -> Option<&[u8]> {
        self.get(b":method")
    }

    /// `:path`
    pub fn path(&self) -> Option<&[u8]> {
        self.get(b":path")
    }

    /// `:authority`
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

    /// The fields with what is known of their hashes, for an encoder.
    pub(crate) fn iter_hashed(&self) -> impl Iterator<Item = Hashed<'_>> {
        self.entries.iter().map(|entry| {
            let field = self.field(entry);
            let name_hash = match entry.name_hash {
                0 => name_hash(field.name),
                known => known,
            };
            Hashed {
                field,
                name_hash,
                hash: entry.hash,
            }
        })
    }

    /// Appends a field whose hashes are known (0: unknown).
    pub(crate) fn push_hashed(&mut self, hashed: Hashed<'_>) {
        let Hashed {
            field,
            name_hash,
            hash,
        } = hashed;
        self.append(field.name, field.value, field.sensitive);
        if let Some(entry) = self.entries.last_mut() {
            (entry.name_hash, entry.hash) = (name_hash, hash);
        }
    }

    /// The arena itself: a decoder writes strings straight to its end and then says with
    /// [`Fields::commit`] that they are a field, or takes them back with [`Fields::rewind`].
    pub(crate) fn arena(&mut self) -> &mut Vec<u8> {
        &mut self.arena
    }

    /// The bytes of a span of the arena.
    pub(crate) fn span(&self, span: Span) -> &[u8] {
        self.slice(span.start, span.len)
    }

    /// Makes a field of two spans that were written to the arena.
    pub(crate) fn commit(
        &mut self,
        name: Span,
        value: Span,
        name_hash: u32,
        hash: u32,
        sensitive: bool,
    ) {
        self.entries.push(Entry {
            name_start: name.start,
            name_len: name.len,
            value_start: value.start,
            value_len: value.len,
            name_hash,
            hash,
            sensitive,
        });
    }

    /// Takes back what was written to the arena since it was `arena_len` long.
    pub(crate) fn rewind(&mut self, arena_len: usize) {
        self.arena.truncate(arena_len);
    }

    fn append(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        let name_start = self.arena.len();
        self.arena.extend_from_slice(name);
        let value_start = self.arena.len();
        self.arena.extend_from_slice(value);
        let name = Span {
            start: name_start,
            len: name.len(),
        };
        let value = Span {
            start: value_start,
            len: value.len(),
        };
        self.commit(name, value, 0, 0, sensitive);
    }

    fn field(&self, entry: &Entry) -> Field<'_> {
        field_in(&self.arena, entry)
    }

    fn slice(&self, start: usize, len: usize) -> &[u8] {
        slice_of(&self.arena, start, len)
    }
}

/// What RFC 7541 §4.1 and RFC 9113 §6.5.2 add to the size of each field.
pub(crate) const FIELD_OVERHEAD: usize = 32;

fn field_in<'a>(arena: &'a [u8], entry: &Entry) -> Field<'a> {
    Field {
        name: slice_of(arena, entry.name_start, entry.name_len),
        value: slice_of(arena, entry.value_start, entry.value_len),
        sensitive: entry.sensitive,
    }
}

fn slice_of(arena: &[u8], start: usize, len: usize) -> &[u8] {
    arena.get(start..start + len).unwrap_or_default()
}

/// Puts a new value in the old one's place if it fits there, else at the end of the arena.
fn overwrite(arena: &mut Vec<u8>, entry: &mut Entry, value: &[u8]) {
    let fits = value.len() <= entry.value_len;
    match arena.get_mut(entry.value_start..entry.value_start + value.len()) {
        Some(place) if fits => place.copy_from_slice(value),
        _ => {
            entry.value_start = arena.len();
            arena.extend_from_slice(value);
        }
    }
    (entry.value_len, entry.hash, entry.sensitive) = (value.len(), 0, false);
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
