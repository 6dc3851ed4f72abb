//! HPACK (RFC 7541): header blocks → [`Fields`] and back, with one table per connection and
//! direction. Decodes blocks (the connection joins CONTINUATION frames; large blocks come in parts)
//! into lists that are limited in size and count; encodes a list by appending a block. No validity
//! of names and values and no stream states: a block of a closed stream is decoded like any other,
//! because the tables would diverge otherwise.

mod integer;
mod huffman;
mod hash;
mod statics;
mod marks;
mod table;
mod decode;
mod index;
mod encode;

pub(crate) use decode::Parts;
pub use decode::{Decoder, HpackError, Limits, Outcome};
pub use encode::Encoder;
pub(crate) use marks::Marks;

#[cfg(doc)]
use crate::Fields;

#[cfg(test)]
mod tests;
