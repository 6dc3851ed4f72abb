//! The claims of paths of all services: those that services make now, and those in the store. Claimants are returned
//! with their rank. This module does not know instances; `heddle_proto::paths` decides which claimant owns a path.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_proto::{
    paths::{Claimant, Instances, Rank},
    store::v1::ClaimRecord,
};

use super::fold::release;
use crate::{names::ServiceName, store::Revision};

/// The proto services that a service claims, and whether it is without instances.
#[derive(Default, PartialEq)]
pub(super) struct Claimed {
    pub(super) empty: bool,
    pub(super) protos: Vec<Arc<str>>,
}

/// A claim in the store.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::registry) struct StoredClaim {
    pub(in crate::registry) created: Revision,
    pub(in crate::registry) modified: Revision,
    pub(in crate::registry) record: ClaimRecord,
}

/// A proto service, and a service that claims its path.
pub(in crate::registry) type PathOf = (Arc<str>, ServiceName);

/// All claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Claims {
    /// Proto service → the services that claim it now, and whether each is without instances.
    claimants: BTreeMap<Arc<str>, BTreeMap<ServiceName, bool>>,
    stored: BTreeMap<ServiceName, BTreeMap<Arc<str>, StoredClaim>>,
    /// The number of stored claims in each namespace.
    in_namespace: BTreeMap<String, usize>,
    count: usize,
}

impl Claims {
    /// The services that claim a proto service, in all namespaces, sorted by name.
    pub(super) fn claimants<'a>(
        &'a self,
        proto: &str,
    ) -> impl Iterator<Item = Claimant<'a, &'a ServiceName>> {
        let claimants = self.claimants.get_key_value(proto);
        let claimants = claimants.into_iter().flat_map(|(proto, services)| {
            services
                .iter()
                .map(move |(service, empty)| (proto, service, *empty))
        });
        claimants.map(|(proto, service, empty)| Claimant {
            service,
            namespace: &service.namespace,
            name: &service.service,
            rank: match self.since(service, proto) {
                Revision(0) => Rank::Unordered,
                Revision(since) => Rank::Since(since),
            },
            instances: match empty {
                true => Instances::None,
                false => Instances::Some,
            },
        })
    }

    /// The revision since which the store has the claim; 0 if it does not have it.
    pub(super) fn since(&self, service: &ServiceName, proto: &str) -> Revision {
        self.stored_one(service, proto)
            .map_or(Revision(0), |claim| claim.created)
    }

    pub(super) fn stored(
        &self,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&Arc<str>, &StoredClaim)> {
        self.stored.get(service).into_iter().flatten()
    }

    pub(super) fn stored_one(&self, service: &ServiceName, proto: &str) -> Option<&StoredClaim> {
        self.stored.get(service)?.get(proto)
    }

    /// Services that have claims in the store, whether they still exist or not.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.stored.keys()
    }

    /// The number of stored claims, in total and in this namespace.
    pub(super) fn counts(&self, namespace: &str) -> (usize, usize) {
        let here = self.in_namespace.get(namespace).copied();
        (self.count, here.unwrap_or_default())
    }

    /// Replaces the claims of a service with its current ones, and adds the changed paths to `changed`.
    pub(super) fn change(
        &mut self,
        service: &ServiceName,
        before: Claimed,
        now: Claimed,
        changed: &mut BTreeSet<PathOf>,
    ) {
        if now == before {
            return;
        }
        for proto in before.protos {
            if let Some(claimants) = self.claimants.get_mut(&proto) {
                claimants.remove(service);
                if claimants.is_empty() {
                    self.claimants.remove(&proto);
                }
            }
            changed.insert((proto, service.clone()));
        }
        for proto in now.protos {
            let claimants = self.claimants.entry(Arc::clone(&proto)).or_default();
            claimants.insert(service.clone(), now.empty);
            changed.insert((proto, service.clone()));
        }
    }

    /// Applies the stored state of one claim. True if the revision since which it exists changed.
    pub(super) fn set(
        &mut self,
        service: &ServiceName,
        proto: &str,
        claim: Option<StoredClaim>,
    ) -> bool {
        let before = self.since(service, proto);
        let now = claim.as_ref().map_or(Revision(0), |claim| claim.created);
        match claim {
            Some(claim) => {
                let of_service = self.stored.entry(service.clone()).or_default();
                if of_service.insert(proto.into(), claim).is_none() {
                    self.count += 1;
                    *self
                        .in_namespace
                        .entry(service.namespace.clone())
                        .or_default() += 1;
                }
            }
            None => self.remove(service, proto),
        }
        before != now
    }

    fn remove(&mut self, service: &ServiceName, proto: &str) {
        let Some(of_service) = self.stored.get_mut(service) else {
            return;
        };
        if of_service.remove(proto).is_some() {
            self.count = self.count.saturating_sub(1);
            release(&mut self.in_namespace, service.namespace.as_str());
        }
        if of_service.is_empty() {
            self.stored.remove(service);
        }
    }
}
