//! Header block → fields.

use std::fmt;

use crate::Fields;

/// How large a decoded list may become (DESIGN §10).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names, values and 32 for each field (RFC 9113 §6.5.2). Four times this ends the decoding.
    pub list_bytes: usize,
    /// Fields, cookie crumbs and pseudo-headers included.
    pub fields: usize,
}

/// What became of a block that was decoded to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every field is in the list.
    Complete,
    /// The list went over its limits: it holds what fitted, in order; the table is right.
    TooLarge,
}

/// Why a block ends the connection with COMPRESSION_ERROR (but for `ListTooLarge`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HpackError {
    /// The block ends inside a field.
    Truncated,
    /// An integer takes more than five continuation octets or is over 2^32-1 (RFC 7541 §5.1).
    IntegerOverflow,
    /// Index 0, or one past both tables (§2.3.3, §6.1).
    BadIndex,
    /// EOS inside a string, padding over 7 bits or not of ones (§5.2).
    BadHuffman,
    /// A dynamic table size update after the first field of a block (§4.2).
    LateSizeUpdate,
    /// A dynamic table size update above our SETTINGS_HEADER_TABLE_SIZE (§6.3).
    SizeUpdateTooLarge,
    /// The list passed four times its limit: decoding stopped, the table is lost. ENHANCE_YOUR_CALM.
    ListTooLarge,
}

impl fmt::Display for HpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "header block ends inside a field",
            Self::IntegerOverflow => "header block holds an integer over 2^32-1",
            Self::BadIndex => "header block names a table entry that does not exist",
            Self::BadHuffman => "header block holds a malformed Huffman string",
            Self::LateSizeUpdate => "header block changes the table size after its first field",
            Self::SizeUpdateTooLarge => "header block sets a table size above our setting",
            Self::ListTooLarge => "header list is more than four times over its limit",
        })
    }
}

impl std::error::Error for HpackError {}

/// The receiving side of one connection's HPACK.
#[derive(Debug)]
pub struct Decoder {
    table_max: usize,
}

impl Decoder {
    /// A decoder whose peer may use a table of up to `table_max` bytes: our
    /// SETTINGS_HEADER_TABLE_SIZE.
    pub fn new(table_max: usize) -> Self {
        Self { table_max }
    }

    /// Appends the fields of one whole block to `out`.
    pub fn decode(
        &mut self,
        _block: &[u8],
        _limits: Limits,
        _out: &mut Fields,
    ) -> Result<Outcome, HpackError> {
        let _ = self.table_max;
        Err(HpackError::Truncated)
    }
}
