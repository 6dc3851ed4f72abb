//! The request body of one call, kept so that it can be sent again until the call is committed. Takes bytes as they are
//! forwarded; beyond the bound nothing is kept and the call can no longer be retried.

/// What has been received of a request's body.
#[derive(Debug, Default)]
pub(super) struct Replay {
    bytes: Vec<u8>,
    incomplete: bool,
}

/// A larger buffer is freed instead of kept for the next call.
const KEEP_CAPACITY: usize = 16 * 1024;

impl Replay {
    /// Keeps `data` if it fits within `bound`; false if the body is too large.
    #[inline]
    pub(super) fn push(&mut self, data: &[u8], bound: usize) -> bool {
        if self.incomplete {
            return false;
        }
        if self.bytes.len() + data.len() > bound {
            self.give_up();
            return false;
        }
        self.bytes.extend_from_slice(data);
        true
    }

    /// Keeps `data` whatever its size, since it has not been sent yet. The stream's window is the bound.
    pub(super) fn keep(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// The body so far; meaningless if it is incomplete.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes in memory.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether parts of the body are missing here.
    #[inline]
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The call is committed: frees the body.
    pub(super) fn give_up(&mut self) {
        self.incomplete = true;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes = Vec::new();
        }
    }

    /// Makes it ready for the next call.
    pub(super) fn reset(&mut self) {
        self.give_up();
        self.incomplete = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_up_to_its_bound_and_then_nothing() {
        let mut replay = Replay::default();
        assert!(replay.push(b"abc", 6) && replay.push(b"def", 6));
        assert_eq!(replay.bytes(), b"abcdef");
        assert!(!replay.push(b"g", 6));
        assert!(replay.is_incomplete() && replay.len() == 0);
        assert!(
            !replay.push(b"h", 6),
            "a later byte does not make it whole again"
        );
        replay.reset();
        assert!(replay.push(b"x", 6));
        assert_eq!(replay.bytes(), b"x");
    }
}
