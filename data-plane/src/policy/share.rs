//! Who may take more of a resource that many share: bytes, streams, waiting calls. The rule is the dynamic
//! threshold of Choudhury and Hahne ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998):
//! a user may take more as long as it holds less than [`ALPHA`] times what is free. Counts come in, yes or no goes
//! out; no clocks, no sockets and nothing about what the resource is.
//!
//! The rule needs no configuration per user. With `n` users that all want as much as they can get, each ends at
//! `bound * ALPHA / (1 + ALPHA * n)`: one alone has 80 % of the bound, two have 44 % each, and some part is always
//! free, so that a newcomer finds room whatever the others do. A user that has nothing is refused only when the
//! bound itself is reached.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// How many times the free part one user may hold.
pub const ALPHA: usize = 4;
/// The same for a group of users that is charged for all of them, such as a service with its callers. Were it the
/// same number, one greedy user of a group would bring both to their limit at once, and nobody else could use the
/// group; so a group may take 94 % of the bound where a single user may take 80 %.
pub const GROUP_ALPHA: usize = 16;

/// Whether a user that holds `used` may take more of a resource of which all users together hold `total`, and may
/// hold `bound`. What it takes is not asked for: a caller checks before each small step (one stream, one header
/// list, one read), and one step may end above the share.
#[inline]
#[must_use]
pub const fn within_share(used: usize, total: usize, bound: usize) -> bool {
    is_below(used, total, bound, ALPHA)
}

/// The same for a group of users, see [`GROUP_ALPHA`]. What one user takes must be within its own share and within
/// that of each group that it belongs to.
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

/// What each user holds of one resource. A user that holds nothing takes no memory here, so the table is as large
/// as the number of users that hold something.
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
    /// `user` holds so much more.
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

    /// `user` gave so much back; never more than it holds.
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

    /// `user` is gone with all that it holds; says how much that was.
    pub fn remove(&mut self, user: &K) -> usize {
        let used = self.used.remove(user).unwrap_or(0);
        self.total -= used;
        used
    }

    /// What `user` holds.
    #[must_use]
    pub fn used(&self, user: &K) -> usize {
        self.used.get(user).copied().unwrap_or(0)
    }

    /// What all users hold.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether `user` may take more, of `bound` in all.
    #[must_use]
    pub fn admits(&self, user: &K, bound: usize) -> bool {
        within_share(self.used(user), self.total, bound)
    }

    /// The same for a user that stands for a group of others.
    #[must_use]
    pub fn admits_group(&self, user: &K, bound: usize) -> bool {
        within_group_share(self.used(user), self.total, bound)
    }

    /// Who holds most, and how much; for the case that the bound is hit and someone must give way.
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

    /// Every user takes one after the other until nobody is admitted any more.
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
