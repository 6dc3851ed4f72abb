//! The hash that both HPACK tables share: a decoder keeps it with each table entry and passes it on
//! in [`crate::Fields`], so that the encoder of another connection finds its own entry without
//! reading the bytes again. Takes bytes, gives a non-zero `u32` (0: not known). Collisions are
//! possible: a look-up compares the bytes.

/// Odd constants with well-mixed bits (the fractional part of the golden ratio, and of √2).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const SEED: u64 = 0x6a09_e667_f3bc_c909;

/// The hash of a field's name.
pub(crate) const fn name_hash(name: &[u8]) -> u32 {
    hash(SEED, name)
}

/// The hash of a whole field, from its name's hash and its value.
pub(crate) const fn field_hash(name_hash: u32, value: &[u8]) -> u32 {
    hash(
        SEED ^ ((name_hash as u64) << 32) ^ (name_hash as u64),
        value,
    )
}

/// Eight bytes a step through a folded 64×64→128 multiplication. The tail is read so that it
/// overlaps what was read before, which needs no loop over single bytes.
#[allow(clippy::cast_possible_truncation)] // const fn has no other way, and truncation is the point
const fn hash(seed: u64, bytes: &[u8]) -> u32 {
    let mut state = seed ^ (bytes.len() as u64);
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        state = fold(state ^ u64::from_le_bytes(*head));
        rest = tail;
    }
    if !rest.is_empty() {
        let last = match (
            bytes.last_chunk::<8>(),
            rest.first_chunk::<4>(),
            rest.last_chunk::<4>(),
        ) {
            (Some(last), _, _) => u64::from_le_bytes(*last),
            (None, Some(low), Some(high)) => {
                (u32::from_le_bytes(*low) as u64) | ((u32::from_le_bytes(*high) as u64) << 32)
            }
            _ => few(rest),
        };
        state = fold(state ^ last);
    }
    let folded = (state ^ (state >> 32)) as u32;
    if folded == 0 { 1 } else { folded }
}

/// One to three bytes as a number: first, middle, last.
const fn few(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a as u64 | 0x100,
        [a, b] => a as u64 | (b as u64) << 8 | 0x1_0000,
        [a, b, c, ..] => a as u64 | (b as u64) << 8 | (c as u64) << 16 | 0x100_0000,
        [] => 0,
    }
}

#[allow(clippy::cast_possible_truncation)] // both halves of the product are used
const fn fold(value: u64) -> u64 {
    let product = ((value ^ SEED) as u128).wrapping_mul(MIX as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_length_and_every_byte_counts() {
        let base: Vec<u8> = (0..40).collect();
        let mut seen = HashSet::new();
        for len in 0..=base.len() {
            assert!(seen.insert(name_hash(&base[..len])), "length {len}");
            for at in 0..len {
                let mut changed = base[..len].to_vec();
                changed[at] ^= 0x40;
                assert!(seen.insert(name_hash(&changed)), "length {len}, byte {at}");
            }
        }
        assert!(!seen.contains(&0));
    }

    #[test]
    fn name_and_value_are_told_apart() {
        let ab = field_hash(name_hash(b"a"), b"b");
        assert_ne!(ab, field_hash(name_hash(b"ab"), b""));
        assert_ne!(ab, field_hash(name_hash(b"b"), b"a"));
    }
}
