//! Which services get the calls of one proto service by path, from each namespace, computed when a table is built.
//! `heddle_proto::paths` has the rule.

use std::sync::Arc;

use heddle_proto::paths::{ByPath, Claimant, Instances, Owner, Path, Rank};

use super::Service;

/// The services that get the calls of one proto service by path.
#[derive(Debug)]
pub(super) struct Targets<S = Arc<Service>> {
    /// Of calls from namespaces with targets of their own, sorted by namespace.
    own: Vec<(Arc<str>, Vec<S>)>,
    /// Of all other calls.
    others: Vec<S>,
    /// The owners of the path, one of a namespace at most, even if another service gets the calls.
    owners: Vec<S>,
}

fn instances(service: &Service) -> Instances {
    match service.endpoints.endpoints.is_empty() {
        false => Instances::Some,
        true if service.endpoints_known => Instances::None,
        true => Instances::Unknown,
    }
}

impl Targets {
    pub(super) fn of(claims: &[(Arc<Service>, Rank)]) -> Self {
        let claimants = claims.iter().map(|(service, rank)| Claimant {
            service,
            namespace: &service.namespace,
            name: &service.service,
            rank: *rank,
            instances: instances(service),
        });
        let path = Path::of(claimants.collect());
        let services = |target: ByPath<&Arc<Service>>| match target {
            ByPath::Unclaimed => Vec::new(),
            ByPath::One(one) => vec![Arc::clone(one)],
            ByPath::Several(several) => several.into_iter().map(Arc::clone).collect(),
        };
        let others = services(path.calls_from_elsewhere());
        let same = |target: &[Arc<Service>]| {
            let names =
                |of: &[Arc<Service>]| of.iter().map(|it| Arc::clone(&it.name)).collect::<Vec<_>>();
            names(target) == names(&others)
        };
        let own = path.owners().filter_map(|(namespace, _)| {
            let target = services(path.calls_from(namespace));
            (!same(&target)).then(|| (namespace.into(), target))
        });
        let owners = path.owners().filter_map(|(_, owner)| match owner {
            Owner::One { owner, .. } => Some(Arc::clone(owner)),
            Owner::Unclaimed | Owner::Unclear(_) => None,
        });
        Self {
            own: own.collect(),
            owners: owners.collect(),
            others,
        }
    }

    /// The services that get the calls from a namespace: one, several if none of them comes first, or none.
    pub(super) fn calls_from(&self, namespace: &str) -> &[Arc<Service>] {
        let own = self.own.iter().find(|(of, _)| **of == *namespace);
        own.map_or(&self.others, |(_, own)| own)
    }

    /// The owner of the path in a namespace, even if another service gets the calls.
    pub(super) fn owner(&self, namespace: &str) -> Option<&Arc<Service>> {
        let mut owners = self.owners.iter();
        owners.find(|it| *it.namespace == *namespace)
    }
}

impl<S> Targets<S> {
    /// The same with other values of the services; those without one are left out.
    pub(super) fn map<T>(&self, to: impl Fn(&S) -> Option<T>) -> Targets<T> {
        let all = |services: &[S]| services.iter().filter_map(&to).collect();
        let own = self.own.iter();
        Targets {
            own: own
                .map(|(namespace, services)| (Arc::from(&**namespace), all(services)))
                .collect(),
            others: all(&self.others),
            owners: all(&self.owners),
        }
    }
}
