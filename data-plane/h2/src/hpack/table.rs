//! The dynamic table of one direction (RFC 7541 §2.3.2, §4): new fields are added at one end and
//! evicted at the other. Entries are in one byte arena in their order, each with its hashes; no
//! entry is allocated by itself. Which fields are worth storing is not decided here; an entry
//! larger than the table is never stored.

use std::collections::VecDeque;

use super::Marks;
use super::statics::{STATIC, static_field};
use crate::fields::{FIELD_OVERHEAD, Marked};

/// The entries that a connection has added, youngest first.
#[derive(Debug)]
pub(crate) struct Table {
    /// All live entries in order, after those that were evicted since the last compaction. At most twice
    /// the live bytes plus one entry.
    arena: Vec<u8>,
    /// Oldest at the front.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
    /// How many have ever been added (wraps): the number of the youngest entry for an index.
    added: u16,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    name_len: usize,
    value_len: usize,
    marks: Marks,
}

impl Entry {
    fn end(&self) -> usize {
        self.start + self.name_len + self.value_len
    }

    /// RFC 7541 §4.1.
    fn size(&self) -> usize {
        self.name_len + self.value_len + FIELD_OVERHEAD
    }
}

impl Table {
    /// An empty table that may grow to `max_size`; allocates with the first entry.
    pub(crate) fn new(max_size: usize) -> Self {
        Self {
            arena: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            max_size,
            added: 0,
        }
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn max_size(&self) -> usize {
        self.max_size
    }

    /// Sum of the entries' sizes as §4.1 counts them.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Evicts what no longer fits (§4.3).
    pub(crate) fn set_max_size(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.evict(max_size);
    }

    /// Adds a field (§4.4), whose bytes are its name and then its value. One that is larger than
    /// the table empties it and is not added.
    pub(crate) fn add(&mut self, bytes: &[u8], name_len: usize, marks: Marks) {
        let size = bytes.len() + FIELD_OVERHEAD;
        let Some(room_for) = self.max_size.checked_sub(size) else {
            self.clear();
            return;
        };
        self.evict(room_for);
        self.move_together();
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        let value_len = bytes.len() - name_len;
        self.entries.push_back(Entry {
            start,
            name_len,
            value_len,
            marks,
        });
        self.size += size;
        self.added = self.added.wrapping_add(1);
    }

    /// Evicts all entries, as a field that is larger than the table does (§4.4).
    pub(crate) fn clear(&mut self) {
        self.evict(0);
    }

    /// The entry that is `age` additions old; 0 is the youngest.
    #[inline]
    pub(crate) fn get(&self, age: usize) -> Option<Marked<'_>> {
        let at = self.entries.len().checked_sub(age + 1)?;
        let entry = self.entries.get(at)?;
        let bytes = self.arena.get(entry.start..entry.end())?;
        let (name_len, marks) = (entry.name_len, entry.marks);
        Some(Marked {
            bytes,
            name_len,
            marks,
            sensitive: false,
        })
    }

    /// The number of the entry just added, for [`Table::age_of`].
    pub(crate) fn youngest(&self) -> u16 {
        self.added
    }

    /// How many additions ago the entry with that number was added. May be a wrong or evicted entry if the
    /// number is stale: the caller compares the bytes.
    pub(crate) fn age_of(&self, number: u16) -> usize {
        usize::from(self.added.wrapping_sub(number))
    }

    fn evict(&mut self, until: usize) {
        while self.size > until {
            match self.entries.pop_front() {
                Some(oldest) => self.size -= oldest.size(),
                None => self.size = 0,
            }
        }
        if self.entries.is_empty() {
            self.arena.clear();
        }
    }

    /// Moves the live entries to the front of the arena once the evicted ones before them take at least
    /// as much: a byte is moved at most once for each evicted byte.
    fn move_together(&mut self) {
        let Some(first) = self.entries.front().map(|entry| entry.start) else {
            return;
        };
        if first > self.arena.len() / 2 {
            self.arena.copy_within(first.., 0);
            self.arena.truncate(self.arena.len() - first);
            for entry in &mut self.entries {
                entry.start -= first;
            }
        }
    }
}

/// The field at an index of both tables (§2.3.3): the static one first, then the youngest.
#[inline]
pub(crate) fn lookup(table: &Table, index: usize) -> Option<Marked<'_>> {
    match index.checked_sub(STATIC.len() + 1) {
        Some(age) => table.get(age),
        None => static_field(index),
    }
}

/// The index of a dynamic entry of that age.
pub(crate) fn dynamic_index(age: usize) -> usize {
    STATIC.len() + 1 + age
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn add(table: &mut Table, name: &[u8], value: &[u8]) {
        table.add(&[name, value].concat(), name.len(), Marks::default());
    }

    fn names(table: &Table) -> Vec<Vec<u8>> {
        (0..table.len())
            .map(|age| table.get(age).expect("lives").name().to_vec())
            .collect()
    }

    #[test]
    fn oldest_entries_leave_first() {
        let mut table = Table::new(3 * (32 + 2));
        for name in [b"a", b"b", b"c", b"d"] {
            add(&mut table, name, b"1");
        }
        assert_eq!(names(&table), [b"d", b"c", b"b"]);
        assert_eq!(table.size(), 3 * 34);
        table.set_max_size(40);
        assert_eq!(names(&table), [b"d"]);
        table.set_max_size(0);
        assert_eq!((table.len(), table.size()), (0, 0));
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = Table::new(100);
        add(&mut table, b"a", b"1");
        add(&mut table, b"b", &[b'x'; 68]);
        assert_eq!(table.len(), 0);
        add(&mut table, b"b", &[b'x'; 67]);
        assert_eq!((table.len(), table.size()), (1, 100));
    }

    #[test]
    fn indices_run_through_both_tables() {
        let mut table = Table::new(4096);
        add(&mut table, b"old", b"1");
        add(&mut table, b"new", b"2");
        let name = |index| lookup(&table, index).map(|field| field.name());
        assert_eq!(name(0), None);
        assert_eq!(name(1), Some(&b":authority"[..]));
        assert_eq!(name(61), Some(&b"www-authenticate"[..]));
        assert_eq!(name(62), Some(&b"new"[..]));
        assert_eq!(name(63), Some(&b"old"[..]));
        assert_eq!(name(64), None);
        assert_eq!(name(usize::MAX), None);
        assert_eq!(dynamic_index(0), 62);
    }

    #[test]
    fn memory_stays_within_twice_the_table() {
        let mut table = Table::new(4096);
        for round in 0..100_000_usize {
            let value = vec![b'v'; round % 700];
            add(&mut table, b"name", &value);
            assert!(table.arena.len() <= 2 * 4096, "{}", table.arena.len());
        }
    }

    proptest! {
        /// Against a plain list of pairs.
        #[test]
        fn behaves_as_a_list(
            steps in proptest::collection::vec((0_usize..200, 0_usize..60, 0_usize..300), 1..200)
        ) {
            let mut table = Table::new(300);
            let mut model: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            let mut max = 300;
            for (step, (kind, name, value)) in steps.into_iter().enumerate() {
                if kind < 10 {
                    max = value;
                    table.set_max_size(max);
                } else {
                    let fill = u8::try_from(step % 256).expect("below 256");
                    let (name, value) = (vec![fill; name], vec![!fill; value]);
                    add(&mut table, &name, &value);
                    model.insert(0, (name, value));
                }
                let mut left = max;
                let fits = model.iter().take_while(|(name, value)| {
                    let size = name.len() + value.len() + 32;
                    let fits = size <= left;
                    left = left.saturating_sub(size);
                    fits
                }).count();
                model.truncate(fits);
                let seen: Vec<_> = (0..table.len()).map(|age| {
                    let field = table.get(age).expect("lives");
                    (field.name().to_vec(), field.value().to_vec())
                }).collect();
                prop_assert_eq!(&seen, &model);
            }
        }
    }
}
