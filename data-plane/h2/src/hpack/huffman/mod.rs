//! The Huffman code of HPACK (RFC 7541 §5.2, appendix B), both ways. Strings come in and go out as
//! bytes, appended to a buffer of the caller. EOS inside a string, padding of more than seven bits
//! and padding that is not of ones may not come in.

mod code;

use code::{CODES, FAST, FAST_BITS, LENGTHS, decode_long};

use super::HpackError;

/// Octets that `text` takes when coded.
pub(crate) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text
        .iter()
        .map(|&byte| usize::from(LENGTHS[usize::from(byte)]))
        .sum();
    bits.div_ceil(8)
}

/// Appends the code of `text`, padded with ones to a whole octet.
pub(crate) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut have) = (0_u64, 0_u32);
    for &byte in text {
        let at = usize::from(byte);
        bits = (bits << LENGTHS[at]) | u64::from(CODES[at]);
        have += u32::from(LENGTHS[at]);
        if have >= 32 {
            have -= 32;
            out.extend_from_slice(&low_word(bits >> have).to_be_bytes());
        }
    }
    let padding = (8 - have % 8) % 8;
    bits = (bits << padding) | ((1 << padding) - 1);
    let octets = (have + padding) / 8;
    for octet in (0..octets).rev() {
        out.push((bits >> (8 * octet) & 0xff) as u8);
    }
}

#[allow(clippy::cast_possible_truncation)] // the higher bits have gone out before
fn low_word(bits: u64) -> u32 {
    bits as u32
}

/// Appends the text of `coded` to `out`, which grows by at most 8/5 of `coded`.
///
/// The next bits stand left-aligned in one `u64` that is refilled by eight octets at once; each
/// look-up of [`FAST_BITS`] gives up to two symbols. Codes that are longer (control characters,
/// bytes above ASCII, rare punctuation) are found by their length.
pub(crate) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let (mut bits, mut have, mut rest) = (0_u64, 0_u32, coded);
    out.reserve(coded.len() * 8 / 5 + SYMBOLS_PER_REFILL);
    while let Some(word) = rest.first_chunk::<8>() {
        // Bits past `have` are the stream's own next bits: setting them again changes nothing.
        bits |= u64::from_be_bytes(*word) >> have;
        let taken = (63 - have) / 8;
        rest = rest.get(taken as usize..).unwrap_or_default();
        have += taken * 8;
        if FAST[fast_at(bits)].symbols() == 0 {
            let (symbol, len) = decode_long(bits).ok_or(HpackError::BadHuffman)?;
            out.push(symbol);
            (bits, have) = (bits << len, have - len);
            continue;
        }
        let (mut text, mut symbols) = (0_u64, 0_usize);
        for _ in 0..LOOKUPS_PER_REFILL {
            let found = FAST[fast_at(bits)];
            if found.symbols() == 0 {
                break; // a long code may need more bits than are left: refill first
            }
            text |= u64::from(found.text()) << (8 * symbols);
            symbols += found.symbols();
            (bits, have) = (bits << found.bits(), have - found.bits());
        }
        let end = out.len() + symbols;
        out.extend_from_slice(&text.to_le_bytes());
        out.truncate(end);
    }
    decode_end(bits, have, rest, out)
}

/// 4 × 12 bits are there after each refill, which leaves at least 56.
const LOOKUPS_PER_REFILL: u32 = 4;
const SYMBOLS_PER_REFILL: usize = 8;

/// The last few octets, where the padding must be told from a code that is cut off.
fn decode_end(
    mut bits: u64,
    mut have: u32,
    mut rest: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), HpackError> {
    loop {
        while let (0..=55, Some((&byte, tail))) = (have, rest.split_first()) {
            bits |= u64::from(byte) << (56 - have);
            (have, rest) = (have + 8, tail);
        }
        // As if the padding went on for ever: no symbol's code is of ones only.
        let padded = bits | (u64::MAX >> have);
        let found = FAST[fast_at(padded)];
        let (text, symbols, len) = if found.symbols() == 0 {
            decode_long(padded).map_or((0, 0, 0), |(symbol, len)| (u16::from(symbol), 1, len))
        } else if found.bits() <= have {
            (found.text(), found.symbols(), found.bits())
        } else {
            (found.text(), 1, found.first_bits())
        };
        if symbols == 0 || len > have {
            let is_padding = have < 8 && padded == u64::MAX;
            return if is_padding {
                Ok(())
            } else {
                Err(HpackError::BadHuffman)
            };
        }
        let [first, second] = text.to_le_bytes();
        out.push(first);
        if symbols == 2 {
            out.push(second);
        }
        (bits, have) = (bits << len, have - len);
    }
}

#[allow(clippy::cast_possible_truncation)] // FAST_BITS bits are left
fn fast_at(bits: u64) -> usize {
    (bits >> (64 - FAST_BITS)) as usize
}

#[cfg(test)]
mod tests;
