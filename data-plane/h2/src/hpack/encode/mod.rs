//! Fields → header block: the sending half. A list comes in, a block is appended to the caller's
//! buffer, and this connection's table changes with it: only what will really be sent may come in.
//!
//! Many callers share one upstream connection and so one small table. What differs from call to
//! call stays out of it, credentials are never indexed (RFC 7541 §7.1.3), and the rest goes in
//! once it has been seen to repeat. What goes into the table is Huffman-coded; what only passes by
//! is sent as it stands, which costs some octets and spares both ends the coding.

use super::index::{Index, Learning};
use super::statics::{Class, Known, STATIC, known};
use super::table::{Table, dynamic_index};
use super::{Marks, huffman, integer};
use crate::Fields;
use crate::fields::{FIELD_OVERHEAD, Marked};

/// The largest table that we keep, whatever the peer offers: the protocol's default.
const OWN_TABLE_MAX: u32 = 4096;

/// Cookies below this length could be guessed octet by octet through the size of the output.
const GUESSABLE_COOKIE: usize = 20;

/// The first octets of the representations (RFC 7541 §6).
const INDEXED: Form = Form {
    flags: 0x80,
    prefix: 7,
};
const LITERAL_ADDED: Form = Form {
    flags: 0x40,
    prefix: 6,
};
const LITERAL: Form = Form {
    flags: 0,
    prefix: 4,
};
const LITERAL_NEVER: Form = Form {
    flags: 0x10,
    prefix: 4,
};
const SIZE_UPDATE: Form = Form {
    flags: 0x20,
    prefix: 5,
};

#[derive(Clone, Copy)]
struct Form {
    flags: u8,
    prefix: u32,
}

/// The sending side of one connection's HPACK.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The indexes of table entries, created when first needed: many connections carry nearly no
    /// traffic.
    memory: Option<Box<Memory>>,
    /// The peer's latest setting.
    peer_size: u32,
    /// The smallest size since the last block, if the next one must signal a change.
    pending: Option<u32>,
}

#[derive(Debug)]
struct Memory {
    index: Index,
    learning: Learning,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder for a peer whose table size is not known yet (4096 until then).
    pub fn new() -> Self {
        Self {
            table: Table::new(OWN_TABLE_MAX as usize),
            memory: None,
            peer_size: OWN_TABLE_MAX,
            pending: None,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. Our own bound is 4 KiB. After a reduction, or when
    /// the size in use changes, the next block starts with the smallest size that was in force
    /// meanwhile and the final one (RFC 7541 §4.2, RFC 9113 §4.3.1).
    pub fn set_peer_table_size(&mut self, size: u32) {
        let in_use = self.peer_size.min(OWN_TABLE_MAX);
        let next = size.min(OWN_TABLE_MAX);
        if size < self.peer_size || next != in_use {
            self.pending = Some(self.pending.map_or(next, |smallest| smallest.min(next)));
        }
        self.peer_size = size;
    }

    /// Appends the block of `fields` to `out`.
    pub fn encode(&mut self, fields: &Fields, out: &mut Vec<u8>) {
        if let Some(smallest) = self.pending.take() {
            self.put_size_updates(smallest, out);
        }
        for field in fields.iter_marked() {
            self.put(&field, out);
        }
    }

    fn put_size_updates(&mut self, smallest: u32, out: &mut Vec<u8>) {
        let last = self.peer_size.min(OWN_TABLE_MAX);
        if smallest < last {
            self.put_size_update(smallest, out);
        }
        self.put_size_update(last, out);
    }

    fn put_size_update(&mut self, size: u32, out: &mut Vec<u8>) {
        self.table.set_max_size(size as usize);
        put_integer(SIZE_UPDATE, size as usize, out);
    }

    #[inline]
    fn put(&mut self, field: &Marked<'_>, out: &mut Vec<u8>) {
        if field.marks.static_index > 0 && !field.sensitive {
            // It was referenced by index, and the static table has no secrets.
            put_integer(INDEXED, usize::from(field.marks.static_index), out);
            return;
        }
        let marks = field.marks.with_name(field.name());
        let known = known(marks.name_id);
        match class_of(known, field) {
            Class::Learn => match static_index(known, field) {
                Some(index) => put_integer(INDEXED, index, out),
                None => self.put_learned(known, field, marks, out),
            },
            // Their names are never in our table, so no look-up is needed.
            Class::Varies => put_literal(LITERAL, known.map_or(0, |k| k.first), field, out),
            Class::Credential | Class::Cookie => {
                put_literal(LITERAL_NEVER, known.map_or(0, |k| k.first), field, out);
            }
        }
    }

    /// A field that is in the table or may be added.
    fn put_learned(
        &mut self,
        known: Option<&Known>,
        field: &Marked<'_>,
        marks: Marks,
        out: &mut Vec<u8>,
    ) {
        let marks = marks.with_value(field.value());
        let new_memory = || {
            Box::new(Memory {
                index: Index::new(),
                learning: Learning::new(),
            })
        };
        let memory = self.memory.get_or_insert_with(new_memory);
        let found = memory.index.find(&self.table, marks.hash, |entry| {
            entry.name_len == field.name_len && entry.bytes == field.bytes
        });
        if let Some(age) = found {
            memory.learning.found(marks.name_hash);
            put_integer(INDEXED, dynamic_index(age), out);
            return;
        }
        let name_index = match known {
            Some(known) if known.first > 0 => known.first,
            _ => dynamic_name(&self.table, &memory.index, field, marks),
        };
        // One field must not evict half of the others.
        let fits = field.bytes.len() + FIELD_OVERHEAD <= self.table.max_size() / 2;
        if fits && memory.learning.is_worth_adding(marks.name_hash, marks.hash) {
            put_literal(LITERAL_ADDED, name_index, field, out);
            self.table.add(field.bytes, field.name_len, marks);
            memory.index.remember(&self.table, marks.hash);
            memory.index.remember(&self.table, marks.name_hash);
        } else {
            put_literal(LITERAL, name_index, field, out);
        }
    }
}

/// The index of an entry of the table that has this name, 0 if there is none.
fn dynamic_name(table: &Table, index: &Index, field: &Marked<'_>, marks: Marks) -> usize {
    let found = index.find(table, marks.name_hash, |entry| entry.name() == field.name());
    found.map_or(0, dynamic_index)
}

/// `Cookie` remains for cookies that must not be indexed.
#[inline]
fn class_of(known: Option<&Known>, field: &Marked<'_>) -> Class {
    let class = known.map_or(Class::Learn, |known| known.class);
    match class {
        _ if field.sensitive => Class::Credential,
        Class::Cookie if field.bytes.len() - field.name_len >= GUESSABLE_COOKIE => Class::Learn,
        class => class,
    }
}

/// The static entry with this name and value.
#[inline]
fn static_index(known: Option<&Known>, field: &Marked<'_>) -> Option<usize> {
    let known = known.filter(|known| known.first > 0)?;
    // A field whose hash is known came from a dynamic table, so the static one does not have it.
    if field.marks.hash > 0 {
        return None;
    }
    let value = field.value();
    let entries = STATIC.get(known.first - 1..known.first - 1 + known.entries)?;
    let at = entries.iter().position(|entry| entry.1 == value)?;
    Some(known.first + at)
}

/// A literal whose name is at an index, or is written out if that is 0.
fn put_literal(form: Form, name_index: usize, field: &Marked<'_>, out: &mut Vec<u8>) {
    let put_string = if form.flags == LITERAL_ADDED.flags {
        put_shorter
    } else {
        put_plain
    };
    put_integer(form, name_index, out);
    if name_index == 0 {
        put_string(field.name(), out);
    }
    put_string(field.value(), out);
}

#[inline]
fn put_integer(form: Form, value: usize, out: &mut Vec<u8>) {
    integer::encode(value, form.prefix, form.flags, out);
}

/// A string without Huffman code (RFC 7541 §5.2).
fn put_plain(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

/// A string in its Huffman code, if that is shorter.
fn put_shorter(text: &[u8], out: &mut Vec<u8>) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        integer::encode(coded, 7, 0x80, out);
        huffman::encode(text, out);
    } else {
        put_plain(text, out);
    }
}

#[cfg(test)]
mod tests;
