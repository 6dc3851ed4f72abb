//! Path ownership: which service owns the path of a proto service within one namespace. Takes the services that claim it, in
//! any order; gives the owner and the service that gets the calls. Both planes use this function, so that Heddle's
//! proxies, Envoy's routes and the status API agree. Where claims come from does not matter here.

/// The rank of a claim: the lowest one owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// In the store since this revision.
    Since(u64),
    /// Known only on this node, the n-th there.
    Local(u64),
    /// Without an order: from an older control plane, or not in the store.
    #[default]
    Unordered,
}

/// A service that claims the path.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'n, S> {
    pub service: S,
    /// The service's full name, which decides between equal ranks.
    pub name: &'n str,
    pub rank: Rank,
    /// Whether it is known to have no instance.
    pub without_instances: bool,
}

/// The owner of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner<S> {
    Unclaimed,
    One {
        owner: S,
        /// Gets the calls: the owner, or while that has no instance the next claimant that has some.
        serves: S,
    },
    /// Several services without an order.
    Unclear(Vec<S>),
}

/// Decides among the claimants of one namespace.
pub fn owner<S: Copy>(mut claimants: Vec<Claimant<'_, S>>) -> Owner<S> {
    claimants.sort_by(|a, b| (a.rank, a.name).cmp(&(b.rank, b.name)));
    let unordered = claimants.partition_point(|it| it.rank < Rank::Unordered);
    let (ordered, unordered) = claimants.split_at(unordered);
    let lives = |it: &&Claimant<'_, S>| !it.without_instances;
    let mut living = unordered.iter().filter(lives);
    let only_living = match (living.next(), living.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    };
    if let Some(first) = ordered.first() {
        let stands_in = ordered.iter().find(lives).or(only_living);
        return Owner::One {
            owner: first.service,
            serves: stands_in.unwrap_or(first).service,
        };
    }
    let living: Vec<S> = unordered
        .iter()
        .filter(lives)
        .map(|it| it.service)
        .collect();
    match (living.as_slice(), unordered.first()) {
        // None has an instance: which of them is reported does not matter.
        ([], Some(one)) => Owner::One {
            owner: one.service,
            serves: one.service,
        },
        ([], None) => Owner::Unclaimed,
        ([one], _) => Owner::One {
            owner: *one,
            serves: *one,
        },
        _ => Owner::Unclear(living),
    }
}

#[cfg(test)]
mod tests {
    use super::{Claimant, Owner, Rank, owner};

    fn decide(claimants: &[(&'static str, Rank, bool)]) -> Owner<&'static str> {
        let claimant = |&(name, rank, without_instances)| Claimant {
            service: name,
            name,
            rank,
            without_instances,
        };
        let mut given: Vec<_> = claimants.iter().map(claimant).collect();
        let decided = owner(given.clone());
        given.reverse();
        assert_eq!(owner(given), decided, "the order in which they come counts");
        decided
    }

    fn one(owner: &'static str, serves: &'static str) -> Owner<&'static str> {
        Owner::One { owner, serves }
    }

    #[test]
    fn the_first_claim_owns_and_the_next_with_instances_stands_in() {
        use Rank::{Local, Since, Unordered};
        for (claimants, expect) in [
            (&[][..], Owner::Unclaimed),
            (
                &[("a", Since(9), false), ("b", Since(4), false)],
                one("b", "b"),
            ),
            (
                &[("a", Since(9), false), ("b", Since(4), true)],
                one("b", "a"),
            ),
            (
                &[("a", Since(9), true), ("b", Since(4), true)],
                one("b", "b"),
            ),
            (
                &[("a", Since(4), false), ("b", Since(4), false)],
                one("a", "a"),
            ),
            // What the control plane says comes before what only this node knows.
            (
                &[("a", Local(1), false), ("b", Since(4), false)],
                one("b", "b"),
            ),
            (
                &[("a", Local(2), false), ("b", Local(1), false)],
                one("b", "b"),
            ),
            (
                &[("a", Unordered, false), ("b", Local(1), false)],
                one("b", "b"),
            ),
            (
                &[("a", Unordered, false), ("b", Since(1), true)],
                one("b", "a"),
            ),
        ] {
            assert_eq!(decide(claimants), expect, "{claimants:?}");
        }
    }

    #[test]
    fn without_an_order_only_one_with_instances_is_clear() {
        let unordered = |name, without_instances| (name, Rank::Unordered, without_instances);
        assert_eq!(decide(&[unordered("a", true)]), one("a", "a"));
        assert_eq!(
            decide(&[unordered("a", true), unordered("b", false)]),
            one("b", "b")
        );
        let two = [unordered("a", false), unordered("b", false)];
        assert_eq!(decide(&two), Owner::Unclear(vec!["a", "b"]));
        let [a, b] = two;
        assert_eq!(
            decide(&[a, b, unordered("c", true)]),
            Owner::Unclear(vec!["a", "b"])
        );
        let none = [unordered("b", true), unordered("a", true)];
        assert_eq!(
            decide(&none),
            one("a", "a"),
            "it has no endpoints either way"
        );
    }
}
