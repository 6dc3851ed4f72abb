//! HPACK (RFC 7541): header blocks → [`Fields`] and back, with one table per connection and
//! direction. Whole blocks come in (the machine joins CONTINUATION frames), lists bounded by size
//! and count go out; an encoder takes a list and appends a block. Validity of names and values and
//! the states of streams may not come in: a block of a dead stream is decoded like any other, or
//! the tables part ways.

mod integer;
mod huffman;
mod hash;
mod statics;
mod marks;
mod table;
mod decode;
mod index;
mod encode;

pub use decode::{Decoder, HpackError, Limits, Outcome};
pub use encode::Encoder;
pub(crate) use marks::Marks;

#[cfg(doc)]
use crate::Fields;

#[cfg(test)]
mod tests;
