//! Merges the pieces of several replicas, each sorted by node id, into one sorted list. At most one piece of each
//! source is kept. Pure.

use super::pieces::Piece;

/// Chooses the next piece. If a node has streams on several replicas, those of the first source come first; so all
/// pieces of one client come before those of another with the same node id.
pub(crate) struct Merge(Vec<Source>);

#[derive(Clone, Debug, Default)]
struct Source {
    /// Its next piece, if it is known.
    next: Option<Piece>,
    ended: bool,
}

impl Merge {
    pub(crate) fn new(sources: usize) -> Self {
        Self(vec![Source::default(); sources])
    }

    /// Whether the source has to deliver a piece before the next one of all is known.
    pub(crate) fn is_missing(&self, source: usize) -> bool {
        let source = self.0.get(source);
        source.is_some_and(|source| source.next.is_none() && !source.ended)
    }

    /// The next piece of a source; none if it has ended.
    pub(crate) fn put(&mut self, source: usize, piece: Option<Piece>) {
        if let Some(source) = self.0.get_mut(source) {
            source.ended = piece.is_none();
            source.next = piece;
        }
    }

    /// The next piece of all; none if all have ended, or one is missing.
    pub(crate) fn pop(&mut self) -> Option<Piece> {
        // The first of equals: while a client continues, no other source's next piece changes, so this source stays
        // first.
        let next = self.0.iter().enumerate();
        let (next, _) = next.min_by(|(_, a), (_, b)| a.rank().cmp(&b.rank()))?;
        self.0.get_mut(next)?.next.take()
    }
}

impl Source {
    fn rank(&self) -> (u8, &str) {
        match &self.next {
            None if !self.ended => (0, ""),
            Some(piece) => (1, piece.node_id()),
            None => (2, ""),
        }
    }
}
