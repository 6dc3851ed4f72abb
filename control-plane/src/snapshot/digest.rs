//! A hash of a set that is updated with the set: the sum of its members' SHA-256 modulo 2^256. Adding or removing one
//! member costs one addition, and the order of members does not matter.

use sha2::{Digest as _, Sha256};

/// The hash of one member, or the sum of several: 256 bits, the lowest 64 first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest([u64; 4]);

/// The hash of what `feed` adds.
pub(super) fn of(feed: impl FnOnce(&mut Sha256)) -> Digest {
    let mut hash = Sha256::new();
    feed(&mut hash);
    let bytes = hash.finalize();
    let mut limbs = [0; 4];
    for (limb, part) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
        *limb = part
            .iter()
            .fold(0, |limb, byte| limb << 8 | u64::from(*byte));
    }
    Digest(limbs)
}

impl Digest {
    pub(super) fn add(&mut self, member: &Self) {
        let mut carry = false;
        for (limb, more) in self.0.iter_mut().zip(member.0) {
            let (sum, first) = limb.overflowing_add(more);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = first || second;
        }
    }

    pub(super) fn subtract(&mut self, member: &Self) {
        let mut borrow = false;
        for (limb, less) in self.0.iter_mut().zip(member.0) {
            let (rest, first) = limb.overflowing_sub(less);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            *limb = rest;
            borrow = first || second;
        }
    }

    pub(super) fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            part.copy_from_slice(&limb.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u64) -> Digest {
        of(|hash| hash.update(number.to_be_bytes()))
    }

    #[test]
    fn a_sum_depends_on_the_members_and_not_on_how_they_came() {
        let mut sum = Digest::default();
        for number in 0..1_000 {
            sum.add(&member(number));
        }
        let mut other = Digest::default();
        for number in (0..1_500).rev() {
            other.add(&member(number));
        }
        assert_ne!(sum, other);
        for number in 1_000..1_500 {
            other.subtract(&member(number));
        }
        assert_eq!(sum, other);
        for number in 0..1_000 {
            other.subtract(&member(number));
        }
        assert_eq!(other, Digest::default());
        assert_eq!(other.bytes(), [0; 32]);
    }

    #[test]
    fn a_carry_goes_through_all_limbs() {
        let mut sum = Digest([u64::MAX; 4]);
        sum.add(&Digest([1, 0, 0, 0]));
        assert_eq!(sum, Digest::default());
        sum.subtract(&Digest([1, 0, 0, 0]));
        assert_eq!(sum, Digest([u64::MAX; 4]));
    }
}
