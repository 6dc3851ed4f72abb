//! Path ownership: which service owns the path of a proto service within one namespace, and which service gets the
//! calls of each namespace. Takes the services that claim the path, in any order. Both planes use these functions, so
//! that Heddle's proxies, Envoy's routes and the status API agree. Where claims come from does not matter here.

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
    pub namespace: &'n str,
    /// The service's name in its namespace, which decides between equal ranks.
    pub name: &'n str,
    pub rank: Rank,
    pub instances: Instances,
}

impl<S> Claimant<'_, S> {
    fn may_have_instances(&self) -> bool {
        self.instances != Instances::None
    }
}

/// Whether a service has instances, healthy or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instances {
    Some,
    /// Not known here: it counts as having some until it is known.
    Unknown,
    None,
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

/// The service that gets the calls of a path from one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByPath<S> {
    Unclaimed,
    One(S),
    /// Several services: the call is not routed.
    Several(Vec<S>),
}

/// The claims of one path in all namespaces.
#[derive(Debug)]
pub struct Path<'n, S> {
    /// Sorted by namespace.
    namespaces: Vec<OfNamespace<'n, S>>,
}

/// The claims of one path in one namespace.
#[derive(Debug)]
struct OfNamespace<'n, S> {
    namespace: &'n str,
    owner: Owner<S>,
    /// The most that is known of one of its claimants.
    instances: Instances,
    /// Its first claim.
    first: (Rank, S),
}

impl<'n, S: Copy> Path<'n, S> {
    pub fn of(mut claimants: Vec<Claimant<'n, S>>) -> Self {
        claimants.sort_by_key(|it| (it.namespace, it.rank, it.name));
        let of_namespace = |claimants: &[Claimant<'n, S>]| {
            let first = claimants.first()?;
            let has = |instances| claimants.iter().any(|it| it.instances == instances);
            let known = [Instances::Some, Instances::Unknown];
            Some(OfNamespace {
                namespace: first.namespace,
                instances: known
                    .into_iter()
                    .find(|it| has(*it))
                    .unwrap_or(Instances::None),
                first: (first.rank, first.service),
                owner: owner(claimants.to_vec()),
            })
        };
        let namespaces = claimants.chunk_by(|a, b| a.namespace == b.namespace);
        Self {
            namespaces: namespaces.filter_map(of_namespace).collect(),
        }
    }

    /// The namespaces in which services claim the path, each with its owner.
    pub fn owners(&self) -> impl Iterator<Item = (&'n str, &Owner<S>)> {
        self.namespaces.iter().map(|it| (it.namespace, &it.owner))
    }

    /// The service that gets the calls from this namespace: the namespace's own, also while that has no instance. A
    /// call must not reach another environment because its own is restarted.
    pub fn calls_from(&self, namespace: &str) -> ByPath<S> {
        let found = self
            .namespaces
            .binary_search_by_key(&namespace, |it| it.namespace);
        match found.ok().and_then(|at| self.namespaces.get(at)) {
            Some(own) => own.target(),
            None => self.calls_from_elsewhere(),
        }
    }

    /// The service that gets the calls from namespaces without a claim. Services without instances do not count, unless
    /// none has any.
    pub fn calls_from_elsewhere(&self) -> ByPath<S> {
        let mut living = self.living();
        match (living.next(), living.next()) {
            (Some(one), None) => one.target(),
            (Some(_), Some(_)) => self.several(),
            (None, _) => {
                // None can answer: the oldest claim says so.
                let first = self.namespaces.iter().min_by_key(|it| it.first.0);
                first.map_or(ByPath::Unclaimed, |it| ByPath::One(it.first.1))
            }
        }
    }

    /// The namespaces with instances, or of which that is unknown.
    fn living(&self) -> impl Iterator<Item = &OfNamespace<'n, S>> {
        let living = |it: &&OfNamespace<'n, S>| it.instances != Instances::None;
        self.namespaces.iter().filter(living)
    }

    fn several(&self) -> ByPath<S> {
        let services = self.living().flat_map(|it| match it.target() {
            ByPath::Unclaimed => Vec::new(),
            ByPath::One(one) => vec![one],
            ByPath::Several(several) => several,
        });
        ByPath::Several(services.collect())
    }
}

impl<S: Copy> OfNamespace<'_, S> {
    fn target(&self) -> ByPath<S> {
        match &self.owner {
            Owner::Unclaimed => ByPath::Unclaimed,
            Owner::One { serves, .. } => ByPath::One(*serves),
            Owner::Unclear(several) => ByPath::Several(several.clone()),
        }
    }
}

/// Decides among the claimants of one namespace.
pub fn owner<S: Copy>(mut claimants: Vec<Claimant<'_, S>>) -> Owner<S> {
    claimants.sort_by(|a, b| (a.rank, a.name).cmp(&(b.rank, b.name)));
    let unordered = claimants.partition_point(|it| it.rank < Rank::Unordered);
    let (ordered, unordered) = claimants.split_at(unordered);
    let lives = |it: &&Claimant<'_, S>| it.may_have_instances();
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
    use super::{ByPath, Claimant, Instances, Owner, Path, Rank, owner};

    fn instances(without: bool) -> Instances {
        match without {
            true => Instances::None,
            false => Instances::Some,
        }
    }

    fn decide(claimants: &[(&'static str, Rank, bool)]) -> Owner<&'static str> {
        let claimant = |&(name, rank, without)| Claimant {
            service: name,
            namespace: "default",
            name,
            rank,
            instances: instances(without),
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

    /// The services that get the calls from a namespace; claimants are `service.namespace`, older ones first.
    fn calls_from(namespace: &str, claimants: &[(&'static str, Instances)]) -> String {
        let of = |(rank, &(service, instances)): (u64, &(&'static str, Instances))| Claimant {
            service,
            namespace: service.split('.').nth(1).unwrap(),
            name: service,
            rank: Rank::Since(rank),
            instances,
        };
        let claimants = (1..).zip(claimants).map(of);
        match Path::of(claimants.collect()).calls_from(namespace) {
            ByPath::Unclaimed => "nobody".to_owned(),
            ByPath::One(one) => one.to_owned(),
            ByPath::Several(several) => several.join(" or "),
        }
    }

    #[test]
    fn the_callers_namespace_comes_first_and_only_several_other_ones_are_ambiguous() {
        use Instances::Some;
        let claimants = [("c.shop", Some), ("b.default", Some), ("a.default", Some)];
        assert_eq!(calls_from("default", &claimants), "b.default");
        assert_eq!(calls_from("shop", &claimants), "c.shop");
        assert_eq!(calls_from("zoo", &claimants), "b.default or c.shop");
        assert_eq!(calls_from("zoo", &[]), "nobody");
    }

    /// Issue 10, B2: claims of services whose instances have gone are nobody's obstacle.
    #[test]
    fn a_service_without_instances_is_in_nobodys_way() {
        use Instances::{None, Some};
        // Of other namespaces: all stopped, one of two, two of three.
        let stopped = [("u2.ns2", None), ("u1.ns1", None)];
        assert_eq!(
            calls_from("default", &stopped),
            "u2.ns2",
            "it has no instance"
        );
        let one_lives = [("u2.ns2", None), ("u1.ns1", Some)];
        assert_eq!(calls_from("default", &one_lives), "u1.ns1");
        let two_live = [("u2.ns2", Some), ("u3.ns3", None), ("u1.ns1", Some)];
        assert_eq!(calls_from("default", &two_live), "u1.ns1 or u2.ns2");
        // Of the caller's own: no call leaves the namespace while its own service is restarted.
        let own = [("a.default", None), ("right.ns1", Some)];
        assert_eq!(calls_from("default", &own), "a.default");
        let stands_in = [
            ("a.default", None),
            ("b.default", Some),
            ("right.ns1", Some),
        ];
        assert_eq!(calls_from("default", &stands_in), "b.default");
        let nobody = [("x.ns1", None), ("a.default", None)];
        assert_eq!(calls_from("default", &nobody), "a.default");
    }

    #[test]
    fn a_service_whose_instances_are_unknown_counts_until_they_are_known() {
        use Instances::{None, Some, Unknown};
        let two = [("x.ns1", Unknown), ("y.ns2", Some), ("z.ns3", None)];
        assert_eq!(calls_from("default", &two), "x.ns1 or y.ns2");
        let own = [("a.default", Unknown), ("x.ns1", Some)];
        assert_eq!(calls_from("default", &own), "a.default");
    }
}
