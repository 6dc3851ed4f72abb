//! Prefixed integers (RFC 7541 §5.1), reading and writing. Numbers over 2^32-1 and encodings of
//! more than five continuation octets are refused: nothing in HTTP/2 is that large, and an endless
//! run of octets is an attack.

use super::HpackError;

/// Octets after the prefix that we accept: enough for 2^32-1, zeros in front included.
const MAX_CONTINUATION: u32 = 5;

/// Reads an integer whose first octet, already taken off, is `first` with `prefix` low bits.
#[inline]
pub(crate) fn decode(first: u8, prefix: u32, rest: &mut &[u8]) -> Result<usize, HpackError> {
    let mask = 0xff_u8 >> (8 - prefix);
    let head = first & mask;
    if head < mask {
        Ok(usize::from(head))
    } else {
        decode_long(mask, rest)
    }
}

#[cold]
fn decode_long(mask: u8, rest: &mut &[u8]) -> Result<usize, HpackError> {
    let mut value = u64::from(mask);
    for octet in 0..MAX_CONTINUATION {
        let (&byte, tail) = rest.split_first().ok_or(HpackError::Truncated)?;
        *rest = tail;
        value += u64::from(byte & 0x7f) << (7 * octet);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).map_err(|_| HpackError::IntegerOverflow)?;
            return usize::try_from(value).map_err(|_| HpackError::IntegerOverflow);
        }
    }
    Err(HpackError::IntegerOverflow)
}

/// Appends `value` with `prefix` bits in the first octet, whose high bits are `flags`.
#[inline]
pub(crate) fn encode(value: usize, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let mask = 0xff_u8 >> (8 - prefix);
    match u8::try_from(value) {
        Ok(small) if small < mask => out.push(flags | small),
        _ => encode_long(value - usize::from(mask), flags | mask, out),
    }
}

#[cold]
fn encode_long(mut left: usize, first: u8, out: &mut Vec<u8>) {
    out.push(first);
    while left >= 0x80 {
        out.push(seven_bits(left) | 0x80);
        left >>= 7;
    }
    out.push(seven_bits(left));
}

#[allow(clippy::cast_possible_truncation)] // masked
fn seven_bits(value: usize) -> u8 {
    (value & 0x7f) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(value: usize, prefix: u32, flags: u8) -> Vec<u8> {
        let mut out = Vec::new();
        encode(value, prefix, flags, &mut out);
        out
    }

    fn decoded(bytes: &[u8], prefix: u32) -> Result<(usize, usize), HpackError> {
        let (&first, mut rest) = bytes.split_first().expect("not empty");
        decode(first, prefix, &mut rest).map(|value| (value, rest.len()))
    }

    #[test]
    fn rfc7541_c_1_examples() {
        assert_eq!(encoded(10, 5, 0), [0b0000_1010]); // C.1.1
        assert_eq!(encoded(1337, 5, 0), [0b0001_1111, 0b1001_1010, 0b0000_1010]); // C.1.2
        assert_eq!(encoded(42, 8, 0), [0b0010_1010]); // C.1.3
        assert_eq!(decoded(&[0b1110_1010], 5), Ok((10, 0)));
        assert_eq!(
            decoded(&[0b1111_1111, 0b1001_1010, 0b0000_1010, 0xaa], 5),
            Ok((1337, 1))
        );
        assert_eq!(decoded(&[0b0010_1010], 8), Ok((42, 0)));
    }

    #[test]
    fn edges() {
        let max = [0x7f, 0x80, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(encoded(0xffff_ffff, 7, 0), max);
        assert_eq!(decoded(&max, 7), Ok((0xffff_ffff, 0)));
        // one more than 2^32-1, and far more
        assert_eq!(
            decoded(&[0x7f, 0x81, 0xff, 0xff, 0xff, 0x0f], 7),
            Err(HpackError::IntegerOverflow)
        );
        assert_eq!(
            decoded(&[0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f], 7),
            Err(HpackError::IntegerOverflow)
        );
        // zeros behind the number: five octets are taken, six are not
        assert_eq!(
            decoded(&[0x1f, 0x80, 0x80, 0x80, 0x80, 0x00], 5),
            Ok((31, 0))
        );
        let endless = [0x1f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00];
        assert_eq!(decoded(&endless, 5), Err(HpackError::IntegerOverflow));
        assert_eq!(decoded(&[0x1f], 5), Err(HpackError::Truncated));
        assert_eq!(decoded(&[0x1f, 0x80], 5), Err(HpackError::Truncated));
    }

    proptest! {
        #[test]
        fn round_trip(value: u32, prefix in 1_u32..=8, tail: [u8; 2]) {
            let value = value as usize >> (value % 32); // small ones as often as large ones
            let mut bytes = encoded(value, prefix, 0);
            prop_assert!(bytes.len() <= 6);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(decoded(&bytes, prefix), Ok((value, 2)));
        }
    }
}
