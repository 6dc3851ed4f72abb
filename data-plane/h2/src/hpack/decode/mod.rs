//! Header block → fields: the receiving half. A whole block and the limits come in; fields are
//! appended to the caller's list, strings decoded straight into its arena. A block that goes over
//! the limits is still decoded to its end, for the table's sake; one that is malformed may not go
//! on in any form, nor may what comes after it on the connection. Large blocks are decoded in parts
//! (`parts.rs`).

mod kept;
mod parts;

use std::fmt;

use super::table::{Table, lookup};
use super::{Marks, huffman, integer};
use crate::Fields;
use crate::headers::FieldClass;
use kept::List;
pub(crate) use parts::Parts;

/// How large a decoded list may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names, values and 32 for each field (RFC 9113 §6.5.2).
    pub list_bytes: usize,
    /// Fields, cookie crumbs and pseudo-headers included.
    pub fields: usize,
    /// A list over its limit is decoded to its end and discarded, so that only its own stream fails
    /// (RFC 9113 §10.5.1). One that exceeds this many bytes counts as an attack (an endless list, or
    /// one large entry referenced again and again) and ends the connection: it limits the bytes that
    /// one block can make us copy.
    pub discarded_bytes: usize,
}

/// The result of a block that was decoded to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every field is in the list.
    Complete,
    /// The list exceeded its limits: it has, in order, the fields that fitted, and those that the end
    /// of a gRPC call needs (`kept.rs`); the table is correct, and the connection can continue.
    TooLarge,
}

/// Why a block ends the connection: COMPRESSION_ERROR, except for [`HpackError::ListTooLarge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HpackError {
    /// The block ends inside a field.
    Truncated,
    /// An integer takes more than five continuation octets or is over 2^32-1 (RFC 7541 §5.1).
    IntegerOverflow,
    /// Index 0, or one past both tables (§2.3.3, §6.1).
    BadIndex,
    /// EOS inside a string, padding over 7 bits or not of ones (§5.2).
    BadHuffman,
    /// A dynamic table size update after the first field of a block (§4.2).
    LateSizeUpdate,
    /// A dynamic table size update above our SETTINGS_HEADER_TABLE_SIZE (§6.3).
    SizeUpdateTooLarge,
    /// The list passed [`Limits::discarded_bytes`]: decoding stopped and the table is lost
    /// (ENHANCE_YOUR_CALM).
    ListTooLarge,
}

impl fmt::Display for HpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "header block ends inside a field",
            Self::IntegerOverflow => "header block contains an integer over 2^32-1",
            Self::BadIndex => "header block names a table entry that does not exist",
            Self::BadHuffman => "header block contains a malformed Huffman string",
            Self::LateSizeUpdate => "header block changes the table size after its first field",
            Self::SizeUpdateTooLarge => "header block sets a table size above our setting",
            Self::ListTooLarge => "header list is too large to be decoded and discarded",
        })
    }
}

impl std::error::Error for HpackError {}

/// The receiving side of one connection's HPACK. It is unusable after an error, because its table may
/// differ from the peer's.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// Our SETTINGS_HEADER_TABLE_SIZE: the bound of the peer's size updates.
    table_max: usize,
}

impl Decoder {
    /// A decoder whose peer may use a table of up to `table_max` bytes: our
    /// SETTINGS_HEADER_TABLE_SIZE, 4096 if we send none.
    pub fn new(table_max: usize) -> Self {
        Self {
            table: Table::new(table_max),
            table_max,
        }
    }

    /// Appends the fields of one whole block to `out`.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: Limits,
        out: &mut Fields,
    ) -> Result<Outcome, HpackError> {
        let mut rest = block;
        self.take_size_updates(&mut rest)?;
        let mut list = List::new(out, limits);
        while let Some((&first, tail)) = rest.split_first() {
            rest = tail;
            self.field(first, &mut rest, &mut list)?;
        }
        Ok(list.end())
    }

    /// One field, whose first octet has been taken off. Inlined, with what it calls for most fields: decoding in parts is a
    /// second caller, and must not make the first one slower.
    #[inline(always)]
    fn field(
        &mut self,
        first: u8,
        rest: &mut &[u8],
        list: &mut List<'_>,
    ) -> Result<(), HpackError> {
        match first {
            0x80.. => self.indexed(first, rest, list),
            0x40..=0x7f => self.literal(first, 6, Literal::Indexed, rest, list),
            0x20..=0x3f => Err(HpackError::LateSizeUpdate),
            0x10..=0x1f => self.literal(first, 4, Literal::Never, rest, list),
            0x00..=0x0f => self.literal(first, 4, Literal::Plain, rest, list),
        }
    }

    /// RFC 7541 §4.2, §6.3: only before the first field, and never above what we allow.
    fn take_size_updates(&mut self, rest: &mut &[u8]) -> Result<(), HpackError> {
        while let Some((&first @ 0x20..=0x3f, tail)) = rest.split_first() {
            *rest = tail;
            let size = integer::decode(first, 5, rest)?;
            if size > self.table_max {
                return Err(HpackError::SizeUpdateTooLarge);
            }
            self.table.set_max_size(size);
        }
        Ok(())
    }

    /// §6.1
    #[inline(always)]
    fn indexed(&self, first: u8, rest: &mut &[u8], list: &mut List<'_>) -> Result<(), HpackError> {
        let index = integer::decode(first, 7, rest)?;
        let found = lookup(&self.table, index).ok_or(HpackError::BadIndex)?;
        if list.admit(found.bytes.len())? {
            list.out.push_marked(&found);
        } else {
            list.over(&found);
        }
        Ok(())
    }

    /// §6.2
    fn literal(
        &mut self,
        first: u8,
        prefix: u32,
        kind: Literal,
        rest: &mut &[u8],
        list: &mut List<'_>,
    ) -> Result<(), HpackError> {
        let arena = list.out.arena();
        let start = arena.len();
        let index = integer::decode(first, prefix, rest)?;
        let mut marks = Marks::default();
        if index == 0 {
            read_string(rest, arena)?;
        } else {
            let found = lookup(&self.table, index).ok_or(HpackError::BadIndex)?;
            arena.extend_from_slice(found.name());
            marks = found.marks.of_name();
        }
        let name_len = arena.len() - start;
        read_string(rest, arena)?;
        let bytes = arena.get(start..).unwrap_or_default();
        let (name, value) = bytes.split_at_checked(name_len).unwrap_or_default();
        marks.class = FieldClass::of(name, value);
        if let Literal::Indexed = kind {
            // The name was copied first: adding may evict the entry that it came from (§4.4).
            marks = marks.with_name(name).with_value(value);
            self.table.add(bytes, name_len, marks);
        }
        let len = bytes.len();
        let sensitive = matches!(kind, Literal::Never);
        if list.admit(len)? {
            list.out
                .commit(start, name_len, len - name_len, marks, sensitive);
        } else {
            list.over_literal(start, name_len, marks, sensitive);
        }
        Ok(())
    }
}

/// How a literal field is to be stored.
#[derive(Clone, Copy)]
enum Literal {
    /// In our table (§6.2.1).
    Indexed,
    /// Not in ours; the next hop may store it (§6.2.2).
    Plain,
    /// In no table (§6.2.3).
    Never,
}

/// A string literal (§5.2), decoded to the end of `arena`. Its length is checked before a byte of
/// it is touched.
fn read_string(rest: &mut &[u8], arena: &mut Vec<u8>) -> Result<(), HpackError> {
    let (&first, tail) = rest.split_first().ok_or(HpackError::Truncated)?;
    *rest = tail;
    let len = integer::decode(first, 7, rest)?;
    let (string, tail) = rest.split_at_checked(len).ok_or(HpackError::Truncated)?;
    *rest = tail;
    if first & 0x80 == 0 {
        arena.extend_from_slice(string);
        Ok(())
    } else {
        huffman::decode(string, arena)
    }
}

#[cfg(test)]
mod tests;
