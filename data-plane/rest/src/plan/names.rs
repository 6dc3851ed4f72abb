//! A table from names to places that the input cannot make slow: its entries come from the schema alone, and the seed of its
//! hash is not known outside, so the longest search is fixed when it is built.

use std::hash::{BuildHasher, RandomState};

/// Edit distances are computed for at most so many names, none longer than so many bytes.
const NEAREST_NAMES: usize = 512;
const NEAREST_BYTES: usize = 40;

#[derive(Debug)]
pub(crate) struct NameTable {
    /// Open addressing, at most half full; a place of `u32::MAX` is empty.
    slots: Box<[Slot]>,
    /// All names in one piece.
    text: Box<[u8]>,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u32,
    len: u32,
    place: u32,
}

const EMPTY: Slot = Slot {
    start: 0,
    len: 0,
    place: u32::MAX,
};

impl NameTable {
    /// Of two equal names the first stays.
    pub(crate) fn new<'a>(names: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let names: Vec<_> = names.collect();
        let size = (names.len() * 2).next_power_of_two().max(2);
        let mut table = Self {
            slots: vec![EMPTY; size].into(),
            text: Box::default(),
            seed: RandomState::new().hash_one(0),
        };
        let mut text = Vec::new();
        for (name, place) in names {
            let name = name.as_bytes();
            let mut at = table.home(name);
            while table.slots[at].place != u32::MAX && part(&text, table.slots[at]) != name {
                at = (at + 1) & (size - 1);
            }
            if table.slots[at].place == u32::MAX {
                let slot = Slot {
                    start: crate::wire::at32(text.len()),
                    len: crate::wire::at32(name.len()),
                    place,
                };
                text.extend_from_slice(name);
                table.slots[at] = slot;
            }
        }
        table.text = text.into();
        table
    }

    #[inline]
    pub(crate) fn find(&self, name: &[u8]) -> Option<u32> {
        let mut at = self.home(name);
        loop {
            let slot = self.slots[at];
            if slot.place == u32::MAX {
                return None;
            }
            if part(&self.text, slot) == name {
                return Some(slot.place);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn home(&self, name: &[u8]) -> usize {
        let mut hash = self.seed ^ name.len() as u64;
        let mut chunks = name.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            hash = fold(hash ^ u64::from_le_bytes(word));
        }
        let mut word = [0; 8];
        let rest = chunks.remainder();
        word[..rest.len()].copy_from_slice(rest);
        hash = fold(hash ^ u64::from_le_bytes(word));
        crate::wire::low32(hash) as usize & (self.slots.len() - 1)
    }
}

fn part(text: &[u8], slot: Slot) -> &[u8] {
    &text[slot.start as usize..(slot.start + slot.len) as usize]
}

/// Multiplies to 128 bits and adds the halves, so that every bit reaches the low ones.
#[allow(clippy::cast_possible_truncation)]
const fn fold(value: u64) -> u64 {
    let wide = (value ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd6e8_feb8_6659_fd93;
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// The name that differs least, if it differs by no more than a third.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > NEAREST_BYTES || name.is_empty() {
        return None;
    }
    let most = name.len().div_ceil(3);
    names
        .filter(|other| other.len() <= NEAREST_BYTES && other.len().abs_diff(name.len()) <= most)
        .take(NEAREST_NAMES)
        .map(|other| (distance(name.as_bytes(), other.as_bytes()), other))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// The edit distance of two short names, the case of ASCII letters not counted.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
