//! The request body of one call, kept so that it can be sent again until the call is committed. Bytes come in
//! as they are relayed; past the bound nothing is kept and the call can no longer be tried again.

/// What was received of a request's body so far.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    bytes: Vec<u8>,
    incomplete: bool,
}

/// A buffer that grew beyond this is given back rather than kept for the next call.
const KEEP_CAPACITY: usize = 16 * 1024;

impl Replay {
    /// Keeps `data` if it fits under `bound`; false once the call has outgrown it.
    pub(crate) fn push(&mut self, data: &[u8], bound: usize) -> bool {
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

    /// Keeps `data` whatever its size: nobody else has it yet. Bounded by the stream's window.
    pub(crate) fn keep(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// The body so far; meaningless once it has outgrown the bound.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How much memory is in use.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the body is no longer complete here.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The call is committed: nothing needs keeping.
    pub(crate) fn give_up(&mut self) {
        self.incomplete = true;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes = Vec::new();
        }
    }

    /// Ready for the next call.
    pub(crate) fn reset(&mut self) {
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
