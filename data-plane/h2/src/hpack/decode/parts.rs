//! A header block that is decoded in parts as its frames arrive, so that a large one takes little
//! memory: of a field that has not arrived as a whole the bytes wait with the caller, and a string
//! that is too long for the list and for the table is skipped. The result is that of
//! [`Decoder::decode`], but skipped Huffman strings are not checked.

use super::kept::{Counts, List};
use super::{Decoder, HpackError, Limits, Outcome, integer};
use crate::Fields;
use crate::fields::FIELD_OVERHEAD;

/// A string of `n` decoded bytes takes at most 30/8 as many octets (RFC 7541 appendix B).
const LONGEST_CODE: usize = 4;

/// A block of which a part has been decoded.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    fields: Fields,
    counts: Counts,
    /// A field has been decoded: the table's size may not change any more.
    started: bool,
    skip: Skip,
}

/// What is skipped next.
#[derive(Clone, Copy, Debug, Default)]
enum Skip {
    #[default]
    Nothing,
    Name(usize),
    /// A value whose length has not been read.
    Value,
    Octets(usize),
}

impl Parts {
    /// The memory of the fields that were kept.
    pub(crate) fn held_bytes(&self) -> usize {
        self.fields.memory_bytes()
    }
}

impl Decoder {
    /// The length of strings that are skipped instead of waited for: what is longer fits neither into
    /// a list nor into the table. The caller keeps at most two as long, a name and a value.
    fn longest_string(&self, limits: Limits) -> usize {
        LONGEST_CODE * limits.list_bytes.max(self.table_max)
    }

    /// Decodes the next bytes of a block; returns how many were used. The others must come again,
    /// before those that follow them.
    pub(crate) fn decode_part(
        &mut self,
        parts: &mut Parts,
        bytes: &[u8],
        limits: Limits,
    ) -> Result<usize, HpackError> {
        let mut rest = bytes;
        let mut list = List::resume(&mut parts.fields, limits, parts.counts);
        while !rest.is_empty() {
            let before = rest;
            let arena_len = list.out.arena().len();
            let step = match parts.skip {
                Skip::Nothing => self.next(&mut parts.started, &mut rest, &mut list),
                skip => go_on(skip, &mut rest, &mut list).map(|next| parts.skip = next),
            };
            match step {
                Ok(()) => {}
                Err(HpackError::Truncated) => {
                    list.out.rewind(arena_len);
                    rest = before;
                    let Some(skip) = self.too_long(&mut rest, limits, &mut list)? else {
                        rest = before;
                        break;
                    };
                    parts.skip = skip;
                }
                Err(error) => return Err(error),
            }
        }
        list.shrink();
        parts.counts = list.counts;
        Ok(bytes.len() - rest.len())
    }

    /// Decodes the last bytes of a block; the list is swapped into `out`.
    pub(crate) fn decode_last(
        &mut self,
        mut parts: Parts,
        bytes: &[u8],
        limits: Limits,
        out: &mut Fields,
    ) -> Result<Outcome, HpackError> {
        let used = self.decode_part(&mut parts, bytes, limits)?;
        if used < bytes.len() || !matches!(parts.skip, Skip::Nothing | Skip::Octets(0)) {
            return Err(HpackError::Truncated);
        }
        std::mem::swap(out, &mut parts.fields);
        Ok(List::resume(out, limits, parts.counts).end())
    }

    /// The next size update or field.
    fn next(
        &mut self,
        started: &mut bool,
        rest: &mut &[u8],
        list: &mut List<'_>,
    ) -> Result<(), HpackError> {
        if let Some(0x20..=0x3f) = rest.first()
            && !*started
        {
            return self.take_size_updates(rest);
        }
        *started = true;
        let (&first, tail) = rest.split_first().ok_or(HpackError::Truncated)?;
        *rest = tail;
        self.field(first, rest, list)
    }

    /// What to skip of a literal that has not arrived as a whole; `None` if its rest is to be waited
    /// for. A literal that was to be indexed is larger than the table, and empties it (§4.4).
    fn too_long(
        &mut self,
        rest: &mut &[u8],
        limits: Limits,
        list: &mut List<'_>,
    ) -> Result<Option<Skip>, HpackError> {
        let Some(long) = long_string(rest, self.longest_string(limits)) else {
            return Ok(None);
        };
        list.skip(long.octets + FIELD_OVERHEAD)?;
        if long.indexed {
            self.table.clear();
        }
        Ok(Some(match long.is_name {
            true => Skip::Name(long.octets),
            false => Skip::Octets(long.octets),
        }))
    }
}

/// A string of a literal that is skipped.
struct Long {
    octets: usize,
    is_name: bool,
    /// The literal was to be indexed.
    indexed: bool,
}

/// Goes on skipping; returns what to skip next.
fn go_on(skip: Skip, rest: &mut &[u8], list: &mut List<'_>) -> Result<Skip, HpackError> {
    let drop = |left: usize, rest: &mut &[u8]| {
        let n = left.min(rest.len());
        *rest = rest.get(n..).unwrap_or_default();
        left - n
    };
    Ok(match skip {
        Skip::Nothing => Skip::Nothing,
        Skip::Name(left) => match drop(left, rest) {
            0 => Skip::Value,
            left => Skip::Name(left),
        },
        Skip::Value => {
            let len = string_len(rest)?;
            list.skip(len)?;
            Skip::Octets(len)
        }
        Skip::Octets(left) => match drop(left, rest) {
            0 => Skip::Nothing,
            left => Skip::Octets(left),
        },
    })
}

/// Moves to the content of the first string over `longest` octets of an incomplete literal, if there
/// is one.
fn long_string(rest: &mut &[u8], longest: usize) -> Option<Long> {
    let (&first, tail) = rest.split_first()?;
    *rest = tail;
    let (prefix, indexed) = match first {
        0x40..=0x7f => (6, true),
        0x00..=0x1f => (4, false),
        _ => return None,
    };
    let mut is_name = integer::decode(first, prefix, rest).ok()? == 0;
    let mut octets = string_len(rest).ok()?;
    if is_name && octets <= longest {
        *rest = rest.get(octets..)?;
        octets = string_len(rest).ok()?;
        is_name = false;
    }
    (octets > longest).then_some(Long {
        octets,
        is_name,
        indexed,
    })
}

/// The length of a string (§5.2), in octets.
fn string_len(rest: &mut &[u8]) -> Result<usize, HpackError> {
    let (&first, tail) = rest.split_first().ok_or(HpackError::Truncated)?;
    *rest = tail;
    integer::decode(first, 7, rest)
}
