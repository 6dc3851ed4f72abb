//! How an encoder finds entries of its own table: a small cache from hash to entry, and a record of
//! which fields repeat. Takes hashes, gives candidates; the caller compares the bytes. Nothing here
//! grows with traffic, and no chosen hash makes a look-up take more than four steps.

use super::table::Table;
use crate::fields::Marked;

const SETS: usize = 64;
const WAYS: usize = 4;

/// From the hash of a field or name to the number of its table entry; four slots for each set of
/// hashes. A field whose entry is displaced is only sent as a literal again.
#[derive(Debug)]
pub(crate) struct Index {
    slots: [[Slot; WAYS]; SETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    tag: u16,
    /// As returned by [`Table::youngest`].
    number: u16,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            slots: [[Slot::default(); WAYS]; SETS],
        }
    }

    /// The age of the entry with that hash which `is_it` confirms.
    #[inline]
    pub(crate) fn find<'t>(
        &self,
        table: &'t Table,
        hash: u32,
        is_it: impl Fn(&Marked<'t>) -> bool,
    ) -> Option<usize> {
        let (set, tag) = slot_of(hash);
        self.slots[set]
            .iter()
            .filter(|slot| slot.tag == tag)
            .find_map(|slot| {
                let age = table.age_of(slot.number);
                table.get(age).filter(&is_it).map(|_| age)
            })
    }

    /// Remembers the youngest entry under a hash.
    pub(crate) fn remember(&mut self, table: &Table, hash: u32) {
        let (set, tag) = slot_of(hash);
        let number = table.youngest();
        let worth = |slot: &Slot| (slot.tag != tag, usize::MAX - table.age_of(slot.number));
        if let Some(slot) = self.slots[set].iter_mut().min_by_key(|slot| worth(slot)) {
            *slot = Slot { tag, number };
        }
    }
}

fn slot_of(hash: u32) -> (usize, u16) {
    (hash as usize % SETS, (hash >> 16) as u16)
}

const SEEN: usize = 128;
const SCORES: usize = 128;

/// Learns which fields are worth storing in the table: those that were seen before, with a name whose
/// fields are reused often enough.
#[derive(Debug)]
pub(crate) struct Learning {
    /// Hashes of fields that were sent as literals, each in its only possible slot.
    seen: [u32; SEEN],
    /// By hash of the name; names with the same slot share their score.
    scores: [Score; SCORES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Score {
    added: u8,
    found: u8,
    refused: u8,
}

/// Additions that a name may make before it must show that they are used.
const TRIAL: u8 = 8;
/// Refusals after which a name gets another trial, as traffic changes.
const RETRY_AFTER: u8 = 200;

impl Learning {
    pub(crate) fn new() -> Self {
        Self {
            seen: [0; SEEN],
            scores: [Score::default(); SCORES],
        }
    }

    /// A field was found in the table.
    pub(crate) fn found(&mut self, name_hash: u32) {
        let score = self.score(name_hash);
        if score.found == u8::MAX {
            (score.added, score.found) = (score.added / 2, score.found / 2);
        }
        score.found += 1;
    }

    /// A field was not found: whether to add it.
    pub(crate) fn is_worth_adding(&mut self, name_hash: u32, hash: u32) -> bool {
        let seen = &mut self.seen[hash as usize % SEEN];
        if *seen != hash {
            *seen = hash;
            return false;
        }
        let score = self.score(name_hash);
        // Found at least twice for each addition; `added` stays below 128 by this.
        if score.added >= TRIAL && score.found / 2 < score.added {
            score.refused += 1;
            if score.refused >= RETRY_AFTER {
                *score = Score {
                    added: score.added / 2,
                    found: score.found / 2,
                    refused: 0,
                };
            }
            return false;
        }
        score.added += 1;
        true
    }

    fn score(&mut self, name_hash: u32) -> &mut Score {
        &mut self.scores[name_hash as usize % SCORES]
    }
}
