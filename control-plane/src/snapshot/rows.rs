//! The endpoints of one service in canonical order, as a list that shares unchanged parts between snapshots. A change
//! of one row copies one chunk of pointers and the list of chunks.

use std::{cmp::Ordering, sync::Arc};

use super::row::Row;

/// Most rows in a chunk; one that grows past it is split in two.
const CHUNK: usize = 128;

/// Rows, sorted by region, zone, node and instance. A clone shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// None of them is empty.
    chunks: Vec<Arc<Vec<Arc<Row>>>>,
    len: usize,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Inserts a row in order; it replaces one with the same key.
    pub(super) fn insert(&mut self, row: Arc<Row>) {
        let at = self.chunk_of(&row);
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![row]));
            self.len += 1;
            return;
        };
        let rows = Arc::make_mut(chunk);
        match rows.binary_search_by(|each| each.place_cmp(&row)) {
            Ok(found) => {
                if let Some(held) = rows.get_mut(found) {
                    *held = row;
                }
                return;
            }
            Err(place) => rows.insert(place, row),
        }
        self.len += 1;
        if rows.len() > CHUNK {
            let second = rows.split_off(CHUNK / 2);
            self.chunks.insert(at + 1, Arc::new(second));
        }
    }

    pub(super) fn remove(&mut self, row: &Row) {
        let at = self.chunk_of(row);
        let Some(chunk) = self.chunks.get_mut(at) else {
            return;
        };
        let rows = Arc::make_mut(chunk);
        let Ok(found) = rows.binary_search_by(|each| each.place_cmp(row)) else {
            return;
        };
        rows.remove(found);
        self.len -= 1;
        if rows.is_empty() {
            self.chunks.remove(at);
        }
    }

    /// The chunk that a row belongs to: the last one that does not begin after it.
    fn chunk_of(&self, row: &Row) -> usize {
        let after = self.chunks.partition_point(|chunk| {
            let first = chunk.first();
            first.is_some_and(|first| first.place_cmp(row) != Ordering::Greater)
        });
        after.saturating_sub(1)
    }
}
