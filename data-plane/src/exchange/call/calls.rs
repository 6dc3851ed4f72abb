//! The calls of one worker by key, from their first headers to their outcome. Buffers of ended calls are reused for new
//! ones. What happens to a call does not belong here.

use heddle_h2::Fields;

use crate::arena::Arena;
use crate::exchange::call::{Call, Replay};
use crate::keys::{CallKey, CallKind};

/// Number of buffers of ended calls that are kept for new ones.
const SPARES: usize = 256;
/// Buffers of a header list larger than this are not kept.
const SPARE_BYTES: usize = 8 * 1024;

#[derive(Debug, Default)]
pub(in crate::exchange) struct Calls {
    arena: Arena<CallKind, Call>,
    spares: Vec<(Fields, Replay)>,
}

impl Calls {
    pub(in crate::exchange) fn get(&self, key: CallKey) -> Option<&Call> {
        self.arena.get(key)
    }

    pub(in crate::exchange) fn get_mut(&mut self, key: CallKey) -> Option<&mut Call> {
        self.arena.get_mut(key)
    }

    pub(in crate::exchange) fn len(&self) -> usize {
        self.arena.len()
    }

    pub(in crate::exchange) fn iter(&self) -> impl Iterator<Item = (CallKey, &Call)> {
        self.arena.iter()
    }

    /// The keys of all calls, for loops that end some of them.
    pub(in crate::exchange) fn keys(&self) -> Vec<CallKey> {
        self.arena.keys()
    }

    /// Buffers for the request of a new call, reused from an ended one if possible.
    pub(in crate::exchange) fn take_buffers(&mut self) -> (Fields, Replay) {
        self.spares.pop().unwrap_or_default()
    }

    /// `None` if the arena is full.
    #[inline]
    pub(in crate::exchange) fn insert_with(
        &mut self,
        make: impl FnOnce() -> Call,
    ) -> Option<CallKey> {
        self.arena.insert_with(|_| make())
    }

    /// Removes an ended call and keeps the buffers of its request for reuse.
    pub(in crate::exchange) fn end(
        &mut self,
        key: CallKey,
        mut request: Fields,
        mut replay: Replay,
    ) {
        self.arena.discard(key);
        if self.spares.len() < SPARES && request.capacity_bytes() <= SPARE_BYTES {
            request.clear();
            replay.reset();
            self.spares.push((request, replay));
        }
    }
}
