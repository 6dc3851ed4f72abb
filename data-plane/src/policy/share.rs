//! Who may take more of a shared resource: bytes, streams, waiting calls. The rule is the dynamic threshold of
//! Choudhury and Hahne ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998): a user may take
//! more while it has less than [`ALPHA`] times what is free. Takes counts, answers yes or no; no clocks, no sockets, no
//! knowledge of the resource.
//!
//! The rule needs no configuration per user. If `n` users want as much as they can get, each ends at `bound * ALPHA /
//! (1 + ALPHA * n)`: one alone gets 80 % of the bound, two get 44 % each. Some part is always free for a newcomer,
//! whatever the others do. A user that has nothing is refused only at the bound itself.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// How many times the free part one user may have.
pub const ALPHA: usize = 4;
/// The same for a group of users, such as a service with its callers. With the same number, one greedy user of a group
/// would bring both to their limits at once, and nobody else could use the group. So a group may take 94 % of the bound
/// where a single user may take 80 %.
pub const GROUP_ALPHA: usize = 16;

/// Whether a user that has `used` may take more of a resource of which all users together have `total`, out of `bound`.
/// The requested amount is not considered: callers check before each small step (one stream, one header list, one
/// read), and one step may end above the share.
#[inline]
#[must_use]
pub const fn within_share(used: usize, total: usize, bound: usize) -> bool {
    is_below(used, total, bound, ALPHA)
}

/// The same for a group of users, see [`GROUP_ALPHA`]. One user must be within its own share and within that of each
/// group to which it belongs.
#[inline]
#[must_use]
pub const fn within_group_share(used: usize, total: usize, bound: usize) -> bool {
    is_below(used, total, bound, GROUP_ALPHA)
}

#[inline]
const fn is_below(used: usize, total: usize, bound: usize, alpha: usize) -> bool {
    let free = bound.saturating_sub(total);
    used < free.saturating_mul(alpha)
}

/// What each user has of one resource. Users that have nothing are not stored.
#[derive(Clone, Debug)]
pub struct Shares<K> {
    used: FxHashMap<K, usize>,
    total: usize,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self {
            used: FxHashMap::default(),
            total: 0,
        }
    }
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// `user` takes `amount`.
    pub fn add(&mut self, user: &K, amount: usize) {
        if amount == 0 {
            return;
        }
        self.total += amount;
        match self.used.get_mut(user) {
            Some(used) => *used += amount,
            None => {
                self.used.insert(user.clone(), amount);
            }
        }
    }

    /// `user` returns `amount`, but not more than it has.
    pub fn sub(&mut self, user: &K, amount: usize) {
        let Some(used) = self.used.get_mut(user) else {
            return;
        };
        let amount = amount.min(*used);
        *used -= amount;
        self.total -= amount;
        if *used == 0 {
            self.used.remove(user);
        }
    }

    /// Removes `user`; returns what it had.
    pub fn remove(&mut self, user: &K) -> usize {
        let used = self.used.remove(user).unwrap_or(0);
        self.total -= used;
        used
    }

    /// What `user` has.
    #[must_use]
    pub fn used(&self, user: &K) -> usize {
        self.used.get(user).copied().unwrap_or(0)
    }

    /// What all users have.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether `user` may take more, out of `bound` in all.
    #[must_use]
    pub fn admits(&self, user: &K, bound: usize) -> bool {
        within_share(self.used(user), self.total, bound)
    }

    /// The same for a user that represents a group.
    #[must_use]
    pub fn admits_group(&self, user: &K, bound: usize) -> bool {
        within_group_share(self.used(user), self.total, bound)
    }

    /// The user that has most, and how much: the one to end if the bound is reached.
    #[must_use]
    pub fn largest(&self) -> Option<(&K, usize)> {
        let largest = self.used.iter().max_by_key(|(_, used)| **used)?;
        Some((largest.0, *largest.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: usize = 10_000;

    /// All users take in turn until none is admitted any more.
    fn fill(users: usize) -> Shares<usize> {
        let mut shares = Shares::default();
        loop {
            let before = shares.total();
            for user in 0..users {
                if shares.admits(&user, BOUND) {
                    shares.add(&user, 1);
                }
            }
            if shares.total() == before {
                return shares;
            }
        }
    }

    #[test]
    fn one_user_alone_takes_four_fifths_of_the_bound() {
        assert_eq!(fill(1).used(&0), 8_000);
    }

    #[test]
    fn many_greedy_users_get_equal_shares_and_leave_some_free() {
        for users in [2, 5, 50] {
            let shares = fill(users);
            let expect = BOUND * ALPHA / (1 + ALPHA * users);
            for user in 0..users {
                assert!(
                    shares.used(&user).abs_diff(expect) <= ALPHA,
                    "{users} users"
                );
            }
            assert!(shares.total() < BOUND);
            assert!(shares.admits(&users, BOUND), "a newcomer finds room");
        }
    }

    #[test]
    fn a_newcomer_overtakes_one_that_was_first_once_that_gives_back() {
        let mut shares = fill(1);
        shares.add(&1, 1_000);
        assert!(!shares.admits(&0, BOUND), "the first is over its share now");
        assert!(shares.admits(&1, BOUND));
        assert_eq!(shares.largest(), Some((&0, 8_000)));
        shares.sub(&0, 5_000);
        assert!(shares.admits(&0, BOUND) && shares.admits(&1, BOUND));
    }

    #[test]
    fn one_greedy_user_leaves_its_group_to_others() {
        let (mut callers, mut services) = (Shares::default(), Shares::default());
        while callers.admits(&"greedy", BOUND) && services.admits_group(&"service", BOUND) {
            callers.add(&"greedy", 1);
            services.add(&"service", 1);
        }
        assert!(callers.admits(&"other", BOUND) && services.admits_group(&"service", BOUND));
        assert!(
            !services.admits(&"service", BOUND),
            "as a single user it would be full"
        );
        assert!(!within_group_share(0, BOUND, BOUND));
    }

    #[test]
    fn nobody_is_admitted_at_the_bound_or_over_it() {
        assert!(within_share(0, BOUND - 1, BOUND));
        assert!(!within_share(0, BOUND, BOUND));
        assert!(!within_share(0, BOUND + 1, BOUND));
        assert!(!within_share(0, 0, 0));
        assert!(within_share(usize::MAX - 1, 0, usize::MAX), "no overflow");
    }

    #[test]
    fn what_was_given_back_is_forgotten() {
        let mut shares = Shares::default();
        shares.add(&"a", 3);
        shares.add(&"b", 4);
        shares.sub(&"a", 9);
        assert_eq!((shares.used(&"a"), shares.total()), (0, 4));
        assert_eq!(shares.remove(&"b"), 4);
        assert_eq!(shares.total(), 0);
        assert!(shares.used.is_empty(), "users without use take no memory");
        shares.sub(&"c", 1);
        assert_eq!(shares.largest(), None);
    }
}
