//! The protobuf wire format, just enough to take a message apart at its top level and put it together again without
//! touching what it does not know (that is how extensions survive). Pure; bounds are those of the given bytes.

use bytes::Bytes;

/// One field of a message as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub number: u32,
    /// Tag and value, byte for byte.
    pub whole: Bytes,
    /// The value of a length-delimited field.
    pub bytes: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("it is cut short")]
    Truncated,
    #[error("it has an unknown wire type")]
    WireType,
}

/// Walks the fields of `message`; ends after the first error.
pub fn fields(message: &Bytes) -> impl Iterator<Item = Result<Field, WireError>> {
    let mut rest = message.clone();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next(&mut rest);
        if field.is_err() {
            rest.clear();
        }
        Some(field)
    })
}

fn next(rest: &mut Bytes) -> Result<Field, WireError> {
    let (tag, tag_len) = varint(rest)?;
    let number = u32::try_from(tag >> 3).map_err(|_| WireError::WireType)?;
    let (value_start, len) = match tag & 7 {
        0 => {
            let tail = rest.get(tag_len..).ok_or(WireError::Truncated)?;
            (tag_len, varint(tail)?.1)
        }
        1 => (tag_len, 8),
        5 => (tag_len, 4),
        2 => {
            let tail = rest.get(tag_len..).ok_or(WireError::Truncated)?;
            let (len, len_len) = varint(tail)?;
            (
                tag_len + len_len,
                usize::try_from(len).map_err(|_| WireError::Truncated)?,
            )
        }
        _ => return Err(WireError::WireType),
    };
    let end = value_start
        .checked_add(len)
        .filter(|end| *end <= rest.len())
        .ok_or(WireError::Truncated)?;
    let whole = rest.split_to(end);
    let bytes = (tag & 7 == 2).then(|| whole.slice(value_start..));
    Ok(Field {
        number,
        whole,
        bytes,
    })
}

fn varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, index + 1));
        }
    }
    Err(WireError::Truncated)
}

/// Appends a length-delimited field.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{WireError, fields, put_bytes};

    proptest! {
        /// Whatever comes from outside is taken apart without a panic, and what was taken apart is all there was.
        #[test]
        fn fields_are_the_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let message = Bytes::from(bytes);
            let found: Vec<_> = fields(&message).collect();
            let whole: Vec<u8> = found.iter().flatten().flat_map(|f| f.whole.to_vec()).collect();
            prop_assert!(message.starts_with(&whole));
            let broken = found.iter().filter(|f| f.is_err()).count();
            let whole_or_last = match broken {
                0 => whole.len() == message.len(),
                _ => broken == 1 && found.last().is_some_and(Result::is_err),
            };
            prop_assert!(whole_or_last);
        }

        #[test]
        fn what_is_put_is_found(values in prop::collection::vec((1u32..5000, prop::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut out = Vec::new();
            for (number, value) in &values {
                put_bytes(&mut out, *number, value);
            }
            let found: Result<Vec<_>, WireError> = fields(&Bytes::from(out)).collect();
            let found: Vec<_> = found.unwrap().into_iter().map(|f| (f.number, f.bytes.unwrap().to_vec())).collect();
            prop_assert_eq!(found, values);
        }
    }

    #[test]
    fn lengths_past_the_end_are_cut_short() {
        for bytes in [
            &[0x0a, 0x05, 1][..],
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
            &[0x08],
            &[0x09, 1],
        ] {
            let found: Vec<_> = fields(&Bytes::copy_from_slice(bytes)).collect();
            assert_eq!(found, [Err(WireError::Truncated)], "{bytes:?}");
        }
        assert_eq!(
            fields(&Bytes::from_static(&[0x0b])).next(),
            Some(Err(WireError::WireType))
        );
    }
}
