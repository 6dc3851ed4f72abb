//! The live streams of a connection: a slab, a map from id to slot, the queues of streams that may
//! write next, and the ids of recently ended streams. Every operation is O(1). What a stream may do
//! is not decided here.

use std::collections::VecDeque;

use crate::event::Token;
use crate::stream::{Pending, Stream};

/// An index in the slab; valid until its stream is removed.
pub(crate) type Slot = u32;

const NONE: u32 = u32::MAX;
/// An idle connection keeps no larger slab or map than this.
const IDLE_SLOTS: usize = 8;
/// Number of ended stream ids that are remembered: late frames on them are not errors.
const REMEMBERED: usize = 256;

/// Live streams.
#[derive(Debug)]
pub(crate) struct Streams {
    slots: Vec<Stream>,
    free: u32,
    live: usize,
    index: Index,
    /// By [`Ring`]: the stream that writes next.
    ready: [Option<Slot>; 2],
    /// The ring that is served next if both have streams.
    turn: Ring,
    ended: Ended,
}

/// Streams that may write next are in one of two rings, by what they write next. Header lists and
/// ends of streams need only space in the output, so they continue while the connection's window is
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// A header list, or the end of the stream. First come, first served: the ids of requests must
    /// rise on the wire (RFC 9113 §5.1.1).
    Lists,
    /// DATA, one frame in turn.
    Data,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: NONE,
            live: 0,
            index: Index::default(),
            ready: [None; 2],
            turn: Ring::Lists,
            ended: Ended::default(),
        }
    }

    #[inline]
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    #[inline]
    pub(crate) fn slot(&self, id: u32) -> Option<Slot> {
        self.index.find(id)
    }

    #[inline]
    pub(crate) fn get(&mut self, id: u32) -> Option<&mut Stream> {
        let slot = self.index.find(id)?;
        self.at(slot)
    }

    #[inline]
    pub(crate) fn at(&mut self, slot: Slot) -> Option<&mut Stream> {
        self.slots.get_mut(slot as usize)
    }

    /// Every live stream, for what touches all of them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slots.iter_mut().filter(|stream| stream.id != 0)
    }

    /// The size of the slab, vacant slots included.
    pub(crate) fn slots(&self) -> Slot {
        u32::try_from(self.slots.len()).unwrap_or(NONE)
    }

    /// The first live stream at `from` or after it in the slab, and where to go on.
    pub(crate) fn scan(&self, from: usize, above: u32) -> Option<(u32, usize)> {
        let slots = self.slots.get(from..)?;
        let at = slots.iter().position(|stream| stream.id > above)?;
        Some((slots.get(at)?.id, from + at + 1))
    }

    pub(crate) fn insert(&mut self, stream: Stream) {
        let id = stream.id;
        let slot = match self.slots.get_mut(self.free as usize) {
            Some(entry) => {
                let slot = self.free;
                self.free = entry.next;
                *entry = stream;
                slot
            }
            None => {
                let slot = u32::try_from(self.slots.len()).unwrap_or(NONE);
                self.slots.push(stream);
                slot
            }
        };
        self.live += 1;
        self.index.insert(id, slot);
    }

    /// Removes a stream and remembers its id. Its slot is free from then on.
    pub(crate) fn remove(&mut self, id: u32, how: End) -> Option<Removed> {
        let slot = self.index.remove(id)?;
        self.remove_ready(slot);
        self.ended.push(id, how);
        let entry = self.slots.get_mut(slot as usize)?;
        let completed = entry.is_over();
        entry.id = 0;
        entry.next = self.free;
        self.free = slot;
        self.live -= 1;
        Some(Removed {
            token: entry.token,
            completed,
            pending: entry.pending.take(),
        })
    }

    /// Remembers a stream that was refused before it was stored.
    pub(crate) fn remember(&mut self, id: u32, how: End) {
        self.ended.push(id, how);
    }

    /// How a stream ended, if it ended recently.
    pub(crate) fn ended(&self, id: u32) -> Option<End> {
        self.ended.find(id)
    }

    /// Drops every stream.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            ended: std::mem::take(&mut self.ended),
            ..Self::new()
        };
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Stream>()
            + self.index.buckets.capacity() * size_of::<(u32, Slot)>()
            + self.ended.ids.capacity() * size_of::<u32>()
    }

    /// Releases memory; for a connection without streams.
    pub(crate) fn shrink(&mut self) {
        if self.live == 0 && self.slots.capacity() > IDLE_SLOTS {
            self.clear();
        }
    }

    /// Puts a stream into the ring that its queue needs, at the end, or into none. A stream that is in
    /// the right ring keeps its position.
    pub(crate) fn update_ready(&mut self, slot: Slot) {
        let Some(stream) = self.slots.get(slot as usize) else {
            return;
        };
        let ring = stream.next_ring();
        if ring == stream.ready {
            return;
        }
        self.remove_ready(slot);
        if let Some(ring) = ring {
            self.make_ready(slot, ring);
        }
    }

    fn make_ready(&mut self, slot: Slot, ring: Ring) {
        let first = self.ready[ring as usize];
        let last = first.and_then(|first| Some(self.slots.get(first as usize)?.prev));
        let Some(stream) = self.slots.get_mut(slot as usize) else {
            return;
        };
        stream.ready = Some(ring);
        let (Some(first), Some(last)) = (first, last) else {
            (stream.prev, stream.next) = (slot, slot);
            self.ready[ring as usize] = Some(slot);
            return;
        };
        (stream.prev, stream.next) = (last, first);
        if let Some(stream) = self.slots.get_mut(last as usize) {
            stream.next = slot;
        }
        if let Some(stream) = self.slots.get_mut(first as usize) {
            stream.prev = slot;
        }
    }

    /// Takes a stream out of its ring.
    pub(crate) fn remove_ready(&mut self, slot: Slot) {
        let Some(stream) = self.slots.get_mut(slot as usize) else {
            return;
        };
        let Some(ring) = stream.ready.take() else {
            return;
        };
        let (prev, next) = (stream.prev, stream.next);
        let first = &mut self.ready[ring as usize];
        if next == slot {
            *first = None;
            return;
        }
        if *first == Some(slot) {
            *first = Some(next);
        }
        if let Some(stream) = self.slots.get_mut(prev as usize) {
            stream.next = next;
        }
        if let Some(stream) = self.slots.get_mut(next as usize) {
            stream.prev = prev;
        }
    }

    /// Whether any stream waits to write.
    #[inline]
    pub(crate) fn any_ready(&self) -> bool {
        self.ready != [None, None]
    }

    /// Whether a header list waits for space in the output.
    #[inline]
    pub(crate) fn any_list_ready(&self) -> bool {
        self.ready[Ring::Lists as usize].is_some()
    }

    /// The stream that may write next; `data`: the connection's window is open. The rings alternate, so
    /// that neither lists nor DATA delay the other.
    pub(crate) fn next_ready(&mut self, data: bool) -> Option<Slot> {
        let lists = self.ready[Ring::Lists as usize];
        let frames = self.ready[Ring::Data as usize].filter(|_| data);
        let (Some(list), Some(frame)) = (lists, frames) else {
            return lists.or(frames);
        };
        match self.turn {
            Ring::Lists => {
                self.turn = Ring::Data;
                Some(list)
            }
            Ring::Data => {
                self.turn = Ring::Lists;
                Some(frame)
            }
        }
    }

    /// Moves to the next stream after a frame of DATA.
    pub(crate) fn rotate(&mut self) {
        let ready = &mut self.ready[Ring::Data as usize];
        if let Some(first) = *ready {
            *ready = self.slots.get(first as usize).map(|stream| stream.next);
        }
    }
}

/// The rest of a removed stream.
pub(crate) struct Removed {
    pub(crate) token: Token,
    /// Both halves had ended.
    pub(crate) completed: bool,
    pub(crate) pending: Option<Box<Pending>>,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both halves ended, or the peer reset it: the peer should send no more.
    Known,
    /// We reset it: the peer may have sent more before it knew.
    ResetByUs,
}

/// The last ids that ended. The top bit says that we reset it.
#[derive(Debug, Default)]
struct Ended {
    ids: VecDeque<u32>,
}

const BY_US: u32 = 1 << 31;

impl Ended {
    fn push(&mut self, id: u32, how: End) {
        if self.ids.len() >= REMEMBERED {
            self.ids.pop_front();
        }
        self.ids.push_back(match how {
            End::Known => id,
            End::ResetByUs => id | BY_US,
        });
    }

    fn find(&self, id: u32) -> Option<End> {
        let mut latest_first = self.ids.iter().rev();
        let found = latest_first.find(|&&ended| ended & !BY_US == id)?;
        Some(match found & BY_US {
            0 => End::Known,
            _ => End::ResetByUs,
        })
    }
}

/// Id → slot, an open hash table with linear probing; an empty entry has id 0. At most half full. Ids
/// of live streams are close together, so most are found at the first probe.
#[derive(Debug, Default)]
struct Index {
    buckets: Vec<(u32, Slot)>,
    used: usize,
}

impl Index {
    #[inline]
    fn home(&self, id: u32) -> usize {
        // Odd ids only: the lowest bit says nothing. The multiplication keeps a peer from choosing
        // ids that all fall on one bucket by taking every n-th.
        let mixed = (id >> 1).wrapping_mul(0x9e37_79b1);
        (mixed.rotate_left(16) as usize) & self.buckets.len().wrapping_sub(1)
    }

    #[inline]
    fn find(&self, id: u32) -> Option<Slot> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut at = self.home(id);
        loop {
            match *self.buckets.get(at)? {
                (0, _) => return None,
                (found, slot) if found == id => return Some(slot),
                _ => at = (at + 1) & (self.buckets.len() - 1),
            }
        }
    }

    fn insert(&mut self, id: u32, slot: Slot) {
        if (self.used + 1) * 2 > self.buckets.len() {
            let larger = (self.buckets.len() * 2).max(2 * IDLE_SLOTS);
            let old = std::mem::replace(&mut self.buckets, vec![(0, 0); larger]);
            for (id, slot) in old.into_iter().filter(|(id, _)| *id != 0) {
                self.put(id, slot);
            }
        }
        self.put(id, slot);
        self.used += 1;
    }

    fn put(&mut self, id: u32, slot: Slot) {
        let mut at = self.home(id);
        let mask = self.buckets.len().wrapping_sub(1);
        while let Some(bucket) = self.buckets.get_mut(at) {
            if bucket.0 == 0 {
                *bucket = (id, slot);
                return;
            }
            at = (at + 1) & mask;
        }
    }

    /// Removes an id and closes the gap, so that later entries are still found.
    fn remove(&mut self, id: u32) -> Option<Slot> {
        let mask = self.buckets.len().wrapping_sub(1);
        let mut at = self.home(id);
        let slot = loop {
            match *self.buckets.get(at)? {
                (0, _) => return None,
                (found, slot) if found == id => break slot,
                _ => at = (at + 1) & mask,
            }
        };
        let mut gap = at;
        loop {
            at = (at + 1) & mask;
            let bucket = *self.buckets.get(at)?;
            if bucket.0 == 0 {
                break;
            }
            let home = self.home(bucket.0);
            // It may move back only if its own bucket does not lie between the gap and it.
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                if let Some(target) = self.buckets.get_mut(gap) {
                    *target = bucket;
                }
                gap = at;
            }
        }
        if let Some(target) = self.buckets.get_mut(gap) {
            *target = (0, 0);
            self.used -= 1;
        }
        Some(slot)
    }
}
