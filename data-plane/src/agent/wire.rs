//! The protobuf wire format, just enough to split a message and join it again without touching unknown fields (which
//! keeps extensions). Pure; bounded by the given bytes; nothing is copied.

use bytes::Bytes;

/// One field of a message on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub number: u32,
    /// Tag and value, unchanged.
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

/// Iterates over the fields of `message`; ends after the first error.
pub fn fields(message: &Bytes) -> impl Iterator<Item = Result<Field, WireError>> {
    let mut rest = message.clone();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = measure(&rest).map(|found| {
            let whole = rest.split_to(found.end);
            let value = found.value;
            let bytes = (found.wire_type == DELIMITED).then(|| whole.slice(value.start..value.end));
            Field {
                number: found.number,
                whole,
                bytes,
            }
        });
        if field.is_err() {
            rest.clear();
        }
        Some(field)
    })
}

/// The value of a field, borrowed from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'m> {
    Varint(u64),
    Bytes(&'m [u8]),
    /// Fixed-width numbers and groups.
    Other,
}

/// Iterates over the fields of a borrowed `message`, without reference counting; ends after the first error.
pub fn values(message: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>), WireError>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let found = measure(rest).and_then(|found| {
            let value = rest.get(found.value.clone()).ok_or(WireError::Truncated)?;
            let value = match found.wire_type {
                VARINT => Value::Varint(found.varint),
                DELIMITED => Value::Bytes(value),
                _ => Value::Other,
            };
            rest = rest.get(found.end..).ok_or(WireError::Truncated)?;
            Ok((found.number, value))
        });
        if found.is_err() {
            rest = &[];
        }
        Some(found)
    })
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const DELIMITED: u64 = 2;
const START_GROUP: u64 = 3;
const END_GROUP: u64 = 4;
const FIXED32: u64 = 5;

/// The measured field at the start of some bytes.
struct Measured {
    number: u32,
    wire_type: u64,
    value: std::ops::Range<usize>,
    end: usize,
    varint: u64,
}

fn measure(bytes: &[u8]) -> Result<Measured, WireError> {
    let (tag, start) = varint(bytes)?;
    let number = u32::try_from(tag >> 3).map_err(|_| WireError::WireType)?;
    let tail = bytes.get(start..).ok_or(WireError::Truncated)?;
    let wire_type = tag & 7;
    let mut number_value = 0;
    let (skip, len) = match wire_type {
        VARINT => {
            let (value, len) = varint(tail)?;
            number_value = value;
            (0, len)
        }
        FIXED64 => (0, 8),
        FIXED32 => (0, 4),
        DELIMITED => {
            let (len, skip) = varint(tail)?;
            let len = usize::try_from(len).map_err(|_| WireError::Truncated)?;
            (skip, len)
        }
        START_GROUP => (0, group(tail)?),
        _ => return Err(WireError::WireType),
    };
    let value = start + skip;
    let end = value
        .checked_add(len)
        .filter(|end| *end <= bytes.len())
        .ok_or(WireError::Truncated)?;
    Ok(Measured {
        number,
        wire_type,
        value: value..end,
        end,
        varint: number_value,
    })
}

/// The length of a group after its start tag, including its end tag. Options of proto2 may be groups.
fn group(bytes: &[u8]) -> Result<usize, WireError> {
    let mut open = 1usize;
    let mut at = 0;
    while open > 0 {
        let rest = bytes.get(at..).ok_or(WireError::Truncated)?;
        let (tag, len) = varint(rest)?;
        at += match tag & 7 {
            START_GROUP => {
                open += 1;
                len
            }
            END_GROUP => {
                open -= 1;
                len
            }
            _ => measure(rest)?.end,
        };
    }
    Ok(at)
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

    use super::{Value, WireError, fields, put_bytes, values};

    proptest! {
        /// Arbitrary input is split without a panic, and the fields together are the message.
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
        for bytes in [&[0x0c][..], &[0x0e], &[0x0f, 1]] {
            let found = fields(&Bytes::from_static(bytes)).next();
            assert_eq!(found, Some(Err(WireError::WireType)), "{bytes:?}");
        }
    }

    #[test]
    fn groups_are_passed_over_whole() {
        // Field 1 is a group that holds a varint and another group; field 2 follows it.
        let message = [0x0b, 0x10, 0x96, 0x01, 0x1b, 0x1c, 0x0c, 0x12, 0x01, b'x'];
        let found: Result<Vec<_>, WireError> = values(&message).collect();
        assert_eq!(found, Ok(vec![(1, Value::Other), (2, Value::Bytes(b"x"))]));
        let unclosed = values(&message[..6]).next();
        assert_eq!(unclosed, Some(Err(WireError::Truncated)));
    }
}
