//! The protobuf wire format as far as JSON needs it: tags, varints, and how to get past a value. Bytes in, bytes out; no
//! descriptors here.

/// Deeper groups than this are refused when they are skipped.
const GROUP_DEPTH: usize = 100;

pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LEN: u8 = 2;
pub(crate) const GROUP: u8 = 3;
pub(crate) const END_GROUP: u8 = 4;
pub(crate) const FIXED32: u8 = 5;

/// The low byte of a number.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn low8(value: u64) -> u8 {
    value as u8
}

/// The low 32 bits, as protobuf reads an `int32` from a varint.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn low32(value: u64) -> u32 {
    value as u32
}

/// A position in a buffer that was checked to be shorter than 4 GiB.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn at32(position: usize) -> u32 {
    position as u32
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low8(value) | 0x80);
        value >>= 7;
    }
    out.push(low8(value));
}

/// How many bytes [`put_varint`] writes.
pub(crate) const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

pub(crate) const fn zigzag32(value: i32) -> u64 {
    (((value << 1) ^ (value >> 31)).cast_unsigned()) as u64
}

pub(crate) const fn zigzag64(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(crate) const fn unzigzag32(value: u32) -> i32 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

pub(crate) const fn unzigzag64(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// The varint at `*at`, which moves behind it; `None` when the bytes end or it is longer than ten bytes.
#[inline]
pub(crate) fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    *at += 1;
    if first < 0x80 {
        return Some(u64::from(first));
    }
    let mut value = u64::from(first & 0x7f);
    let mut shift = 7;
    while shift < 70 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
        shift += 7;
    }
    None
}

/// Field number and wire type; `None` for a number that protobuf does not allow.
#[inline]
pub(crate) fn tag(bytes: &[u8], at: &mut usize) -> Option<(u32, u8)> {
    let tag = varint(bytes, at)?;
    let number = u32::try_from(tag >> 3).ok()?;
    (number != 0 && number < 1 << 29).then_some((number, low8(tag & 7)))
}

/// The range of a length-delimited value at `*at`, which moves behind it.
#[inline]
pub(crate) fn delimited(bytes: &[u8], at: &mut usize) -> Option<(usize, usize)> {
    let len = usize::try_from(varint(bytes, at)?).ok()?;
    let start = *at;
    let end = start.checked_add(len).filter(|end| *end <= bytes.len())?;
    *at = end;
    Some((start, end))
}

pub(crate) fn fixed32(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let value = bytes.get(*at..*at + 4)?;
    *at += 4;
    Some(u32::from_le_bytes(value.try_into().ok()?))
}

pub(crate) fn fixed64(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let value = bytes.get(*at..*at + 8)?;
    *at += 8;
    Some(u64::from_le_bytes(value.try_into().ok()?))
}

/// Moves behind the value of a field whose tag has been read.
#[inline]
pub(crate) fn skip(bytes: &[u8], at: &mut usize, number: u32, wire_type: u8) -> Option<()> {
    match wire_type {
        VARINT => varint(bytes, at).map(drop),
        FIXED64 => fixed64(bytes, at).map(drop),
        LEN => delimited(bytes, at).map(drop),
        FIXED32 => fixed32(bytes, at).map(drop),
        GROUP => group_end(bytes, at, number).map(drop),
        _ => None,
    }
}

/// Moves behind the end tag of a group, and gives where its content ends. Keeps the open numbers itself: a hostile answer
/// nests groups to overflow the stack.
pub(crate) fn group_end(bytes: &[u8], at: &mut usize, number: u32) -> Option<usize> {
    let mut open = vec![number];
    loop {
        let before = *at;
        let (number, wire_type) = tag(bytes, at)?;
        match wire_type {
            GROUP if open.len() < GROUP_DEPTH => open.push(number),
            GROUP => return None,
            END_GROUP => {
                if open.pop()? != number {
                    return None;
                }
                if open.is_empty() {
                    return Some(before);
                }
            }
            other => skip(bytes, at, number, other)?,
        }
    }
}
