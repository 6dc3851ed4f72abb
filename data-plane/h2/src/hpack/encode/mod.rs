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
use super::{huffman, integer};
use crate::Fields;
use crate::fields::{FIELD_OVERHEAD, Hashed};

/// The largest table we keep, whatever the peer offers: memory of ours, and the protocol's default.
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
    /// The finders of table entries, made when first needed: many connections carry next to
    /// nothing.
    memory: Option<Box<Memory>>,
    /// The peer's setting as it said it last.
    peer_size: u32,
    /// The smallest size since the last block, when the next one must tell of a change.
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
    /// An encoder for a peer that has not told its table size yet (4096 until then).
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
        for hashed in fields.iter_hashed() {
            self.put(&hashed, out);
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

    fn put(&mut self, hashed: &Hashed<'_>, out: &mut Vec<u8>) {
        let field = &hashed.field;
        let known = known(hashed.name_hash, field.name);
        match class_of(known, hashed) {
            Class::Credential | Class::Cookie => {
                self.put_literal(LITERAL_NEVER, known, hashed, out);
            }
            Class::Varies => self.put_literal(LITERAL, known, hashed, out),
            Class::Learn => match known.and_then(|known| static_index(known, field.value)) {
                Some(index) => put_integer(INDEXED, index, out),
                None => self.put_learned(known, hashed, out),
            },
        }
    }

    /// A field that may stand in the table, or come to stand there.
    fn put_learned(&mut self, known: Option<&Known>, hashed: &Hashed<'_>, out: &mut Vec<u8>) {
        let field = &hashed.field;
        let hash = hashed.full_hash();
        let new_memory = || {
            Box::new(Memory {
                index: Index::new(),
                learning: Learning::new(),
            })
        };
        let memory = self.memory.get_or_insert_with(new_memory);
        let found = memory.index.find(&self.table, hash, |entry| {
            entry.hash == hash && entry.field.value == field.value && entry.field.name == field.name
        });
        if let Some(age) = found {
            memory.learning.found(hashed.name_hash);
            put_integer(INDEXED, dynamic_index(age), out);
            return;
        }
        // One field may not push out half of the others.
        let size = field.name.len() + field.value.len() + FIELD_OVERHEAD;
        let fits = size <= self.table.max_size() / 2;
        if !fits || !memory.learning.is_worth_adding(hashed.name_hash, hash) {
            self.put_literal(LITERAL, known, hashed, out);
            return;
        }
        self.put_literal(LITERAL_ADDED, known, hashed, out);
        self.table
            .add(field.name, field.value, hashed.name_hash, hash);
        if let Some(memory) = &mut self.memory {
            memory.index.remember(&self.table, hash);
            memory.index.remember(&self.table, hashed.name_hash);
        }
    }

    fn put_literal(
        &self,
        form: Form,
        known: Option<&Known>,
        hashed: &Hashed<'_>,
        out: &mut Vec<u8>,
    ) {
        let put_string = if form.flags == LITERAL_ADDED.flags {
            put_shorter
        } else {
            put_plain
        };
        let name_index = match known {
            Some(known) if known.first > 0 => known.first,
            _ => self.dynamic_name(hashed).unwrap_or(0),
        };
        put_integer(form, name_index, out);
        if name_index == 0 {
            put_string(hashed.field.name, out);
        }
        put_string(hashed.field.value, out);
    }

    /// The index of an entry of the table that has this name.
    fn dynamic_name(&self, hashed: &Hashed<'_>) -> Option<usize> {
        let memory = self.memory.as_ref()?;
        let age = memory.index.find(&self.table, hashed.name_hash, |entry| {
            entry.field.name == hashed.field.name
        });
        age.map(dynamic_index)
    }
}

/// `Cookie` is left for cookies that may not be indexed.
fn class_of(known: Option<&Known>, hashed: &Hashed<'_>) -> Class {
    let class = known.map_or(Class::Learn, |known| known.class);
    match class {
        _ if hashed.field.sensitive => Class::Credential,
        Class::Cookie if hashed.field.value.len() >= GUESSABLE_COOKIE => Class::Learn,
        class => class,
    }
}

/// The static entry with this value, of those that the name has.
fn static_index(known: &Known, value: &[u8]) -> Option<usize> {
    let first = known.first.checked_sub(1)?;
    let entries = STATIC.get(first..first + known.entries)?;
    let at = entries.iter().position(|entry| entry.1 == value)?;
    Some(known.first + at)
}

fn put_integer(form: Form, value: usize, out: &mut Vec<u8>) {
    integer::encode(value, form.prefix, form.flags, out);
}

/// A string as it stands (RFC 7541 §5.2).
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
