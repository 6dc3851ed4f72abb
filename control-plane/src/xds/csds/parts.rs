//! Packs pieces into answers of bounded size. A client may be continued in the next answer. Pure.

use envoy_types::pb::envoy::service::status::v3::ClientStatusResponse;
use prost::Message as _;

use super::pieces::{FRAME_BYTES, Piece};

/// Returns a part that has reached its longest size, and begins the next one.
pub(crate) struct Parts {
    limit: usize,
    part: Part,
    bytes: usize,
}

/// A part of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    pub(crate) response: ClientStatusResponse,
    /// Its first client continues the last client of the part before.
    pub(crate) continued: bool,
}

impl Parts {
    /// `limit` in bytes; only a piece that is longer makes a longer part, alone.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            part: Part::default(),
            bytes: 0,
        }
    }

    /// Adds a piece. Returns the part before, if the piece does not fit into it.
    pub(crate) fn add(&mut self, piece: Piece) -> Option<Part> {
        let bytes = piece.client.encoded_len() + FRAME_BYTES;
        let begun = !self.part.response.config.is_empty();
        let full = (begun && self.bytes + bytes > self.limit).then(|| self.take());
        self.bytes += bytes;
        match self.part.response.config.last_mut() {
            Some(last) if piece.continued => {
                let more = piece.client.generic_xds_configs;
                last.generic_xds_configs.extend(more);
            }
            Some(_) => self.part.response.config.push(piece.client),
            None => {
                self.part.continued = piece.continued;
                self.part.response.config.push(piece.client);
            }
        }
        full
    }

    /// The last part.
    pub(crate) fn take(&mut self) -> Part {
        self.bytes = 0;
        std::mem::take(&mut self.part)
    }
}

impl Part {
    pub(crate) fn is_empty(&self) -> bool {
        self.response.config.is_empty()
    }

    pub(crate) fn into_pieces(self) -> impl Iterator<Item = Piece> {
        let mut continued = self.continued;
        let clients = self.response.config.into_iter();
        clients.map(move |client| Piece {
            client,
            continued: std::mem::take(&mut continued),
        })
    }
}
