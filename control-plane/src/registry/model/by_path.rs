//! Decides which service is meant by a call that names a proto service but no mesh service: first within the caller's
//! namespace, then among all others. Pure. Within one namespace `heddle_proto::paths` decides.

use std::collections::BTreeMap;

use heddle_proto::paths::{Claimant, Owner, owner};

use crate::names::ServiceName;

/// The namespace of all callers, until callers have an identity.
pub const CALLERS: &str = "default";

/// The service that a call by path is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByPath<S> {
    Unclaimed,
    One {
        owner: S,
        /// The service that gets the calls: the owner, or another one while the owner has no instance.
        serves: S,
    },
    /// Several services: the call is not routed.
    Ambiguous(Vec<S>),
}

/// A claimant with a service name.
pub trait Named: Copy {
    fn name(&self) -> &ServiceName;
}

impl Named for &ServiceName {
    fn name(&self) -> &ServiceName {
        self
    }
}

/// The owner of the path in one namespace.
pub fn owner_among<'n, S: Named>(
    claimants: impl Iterator<Item = Claimant<'n, S>>,
    namespace: &str,
) -> Owner<S> {
    let here = |it: &Claimant<'_, S>| it.service.name().namespace == namespace;
    owner(claimants.filter(here).collect())
}

/// The service that a call by path is for, if its caller is in this namespace.
pub fn by_path<'n, S: Named>(claimants: Vec<Claimant<'n, S>>, namespace: &str) -> ByPath<S> {
    let mut namespaces: BTreeMap<String, Vec<Claimant<'n, S>>> = BTreeMap::new();
    for claimant in claimants {
        let of = claimant.service.name().namespace.clone();
        namespaces.entry(of).or_default().push(claimant);
    }
    if let Some(own) = namespaces.remove(namespace) {
        return clear(owner(own));
    }
    let mut owners = Vec::new();
    for claimants in namespaces.into_values() {
        let lives = claimants.iter().any(|it| !it.without_instances);
        match owner(claimants) {
            Owner::Unclaimed => {}
            one @ Owner::One { .. } => owners.push((lives, one)),
            Owner::Unclear(several) => {
                let each = |service| {
                    (
                        lives,
                        Owner::One {
                            owner: service,
                            serves: service,
                        },
                    )
                };
                owners.extend(several.into_iter().map(each));
            }
        }
    }
    // If exactly one namespace's owner has instances, it wins over the owners without any.
    let living = owners.iter().filter(|(lives, _)| *lives).count();
    if living == 1 {
        owners.retain(|(lives, _)| *lives);
    }
    match owners.as_slice() {
        [] => ByPath::Unclaimed,
        [(_, one)] => clear(one.clone()),
        several => {
            let service = |(_, owner): &(bool, Owner<S>)| match owner {
                Owner::One { owner, .. } => Some(*owner),
                Owner::Unclaimed | Owner::Unclear(_) => None,
            };
            ByPath::Ambiguous(several.iter().filter_map(service).collect())
        }
    }
}

fn clear<S>(owner: Owner<S>) -> ByPath<S> {
    match owner {
        Owner::Unclaimed => ByPath::Unclaimed,
        Owner::One { owner, serves } => ByPath::One { owner, serves },
        Owner::Unclear(several) => ByPath::Ambiguous(several),
    }
}

#[cfg(test)]
mod tests {
    use heddle_proto::paths::Rank;

    use super::*;

    fn decide(claimants: &[(&str, u64, bool)], namespace: &str) -> String {
        let names: Vec<_> = claimants
            .iter()
            .map(|(name, ..)| ServiceName::parse(name).unwrap())
            .collect();
        let claimants =
            names
                .iter()
                .zip(claimants)
                .map(|(service, (_, since, without_instances))| Claimant {
                    service,
                    name: &service.service,
                    rank: Rank::Since(*since),
                    without_instances: *without_instances,
                });
        match by_path(claimants.collect(), namespace) {
            ByPath::Unclaimed => "nobody".to_owned(),
            ByPath::One { serves, .. } => serves.to_string(),
            ByPath::Ambiguous(several) => {
                let names: Vec<_> = several.iter().map(ToString::to_string).collect();
                names.join(" or ")
            }
        }
    }

    #[test]
    fn the_callers_namespace_comes_first_and_only_several_other_ones_are_ambiguous() {
        let claimants = [
            ("b.default", 7, false),
            ("a.default", 9, false),
            ("c.shop", 1, false),
        ];
        assert_eq!(decide(&claimants, "default"), "b.default");
        assert_eq!(decide(&claimants, "shop"), "c.shop");
        assert_eq!(decide(&claimants, "zoo"), "b.default or c.shop");
        assert_eq!(decide(&[], "zoo"), "nobody");
        // The caller's own namespace comes first even without instances. Other services without instances do not count.
        let empty = [("a.default", 1, true), ("c.shop", 2, false)];
        assert_eq!(decide(&empty, "default"), "a.default");
        assert_eq!(decide(&empty, "zoo"), "c.shop");
    }
}
