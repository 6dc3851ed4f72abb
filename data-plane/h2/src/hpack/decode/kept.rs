//! The list that is being decoded: which of its fields are kept. Those that fit are, and beyond the
//! limits a few that the end of a gRPC call cannot do without, wherever they stand (a small bounded
//! reserve). Counts sizes; knows nothing of how fields are encoded.

use super::{HpackError, Limits, Outcome};
use crate::Fields;
use crate::fields::{FIELD_OVERHEAD, Marked};
use crate::headers::FieldClass;
use crate::hpack::Marks;

/// Fields that are kept once each although they are over the limits, and how much of their values:
/// without them the caller would not learn the service's status. `:status` is not among them, because
/// it is the first field of a valid list.
const RESERVED: [(&[u8], usize); 3] = [
    (b"grpc-status", 16),
    (b"grpc-message", 4096),
    (b"content-type", 256),
];
/// Upper bound of the memory for names and values of reserved fields.
const RESERVED_BYTES: usize = 4608;

/// The sizes of a list so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    kept: usize,
    kept_bytes: usize,
    /// Of all fields, including those that did not fit.
    seen_bytes: usize,
    /// Which of [`RESERVED`] were kept beyond the limits, a bit each.
    reserved: u8,
    too_large: bool,
}

/// A list being decoded.
pub(super) struct List<'o> {
    pub(super) out: &'o mut Fields,
    limits: Limits,
    pub(super) counts: Counts,
}

impl<'o> List<'o> {
    #[inline]
    pub(super) fn new(out: &'o mut Fields, limits: Limits) -> Self {
        Self {
            out,
            limits,
            counts: Counts::default(),
        }
    }

    /// A list that goes on where it was left.
    pub(super) fn resume(out: &'o mut Fields, limits: Limits, counts: Counts) -> Self {
        Self {
            out,
            limits,
            counts,
        }
    }

    /// Counts a field of this size; returns whether it fits.
    #[inline(always)]
    pub(super) fn admit(&mut self, bytes: usize) -> Result<bool, HpackError> {
        let size = bytes + FIELD_OVERHEAD;
        let counts = &mut self.counts;
        counts.seen_bytes += size;
        if counts.seen_bytes > self.limits.discarded_bytes {
            return Err(HpackError::ListTooLarge);
        }
        let kept_bytes = counts.kept_bytes + size;
        let fits = counts.kept < self.limits.fields && kept_bytes <= self.limits.list_bytes;
        if fits {
            counts.kept += 1;
            counts.kept_bytes = kept_bytes;
        }
        Ok(fits)
    }

    /// A field that is not decoded because it cannot fit, or a part of one.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), HpackError> {
        self.counts.too_large = true;
        self.counts.seen_bytes = self.counts.seen_bytes.saturating_add(bytes);
        match self.counts.seen_bytes > self.limits.discarded_bytes {
            true => Err(HpackError::ListTooLarge),
            false => Ok(()),
        }
    }

    /// A field of a table that does not fit.
    #[cold]
    pub(super) fn over(&mut self, field: &Marked<'_>) {
        let start = self.out.arena().len();
        self.out.arena().extend_from_slice(field.bytes);
        self.over_literal(start, field.name_len, field.marks, false);
    }

    /// A field that does not fit, at the end of the arena from `start` on.
    #[cold]
    pub(super) fn over_literal(
        &mut self,
        start: usize,
        name_len: usize,
        marks: Marks,
        sensitive: bool,
    ) {
        self.counts.too_large = true;
        let arena = self.out.arena();
        let bytes = arena.get(start..).unwrap_or_default();
        let (name, value) = bytes.split_at_checked(name_len).unwrap_or_default();
        let found = RESERVED.iter().position(|(known, _)| *known == name);
        let Some((at, &(_, most))) = found.and_then(|at| Some((at, RESERVED.get(at)?))) else {
            return self.out.rewind(start);
        };
        let valid = FieldClass::of(name, value) == FieldClass::Ordinary;
        if !valid || self.counts.reserved & (1 << at) != 0 {
            return self.out.rewind(start);
        }
        self.counts.reserved |= 1 << at;
        let (value_len, marks) = match value.len() > most {
            true => (most, marks.of_name()),
            false => (value.len(), marks),
        };
        self.out.rewind(start + name_len + value_len);
        self.out
            .commit(start, name_len, value_len, marks, sensitive);
    }

    /// Releases memory that fields which were not kept have taken.
    pub(super) fn shrink(&mut self) {
        let most = self.limits.list_bytes + RESERVED_BYTES;
        self.out.arena().shrink_to(most);
    }

    #[inline]
    pub(super) fn end(mut self) -> Outcome {
        if self.counts.too_large {
            self.shrink();
            return Outcome::TooLarge;
        }
        Outcome::Complete
    }
}
