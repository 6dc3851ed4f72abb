//! Who claims which proto service, over all services. In come the claims of one service before and after a change,
//! out goes who counts. Nothing here knows instances.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::registry::ServiceName;

/// Which proto services a service claims, and how.
#[derive(Default, PartialEq)]
pub(super) struct Claim {
    pub(super) empty: bool,
    pub(super) protos: Vec<Arc<str>>,
}

/// Who claims one proto service.
#[derive(Clone, Debug, Default, PartialEq)]
struct Claimants {
    /// Services with instances.
    used: BTreeSet<ServiceName>,
    /// Services without: they count only where there is no other.
    empty: BTreeSet<ServiceName>,
}

impl Claimants {
    fn of(&mut self, empty: bool) -> &mut BTreeSet<ServiceName> {
        if empty {
            &mut self.empty
        } else {
            &mut self.used
        }
    }
}

static NOBODY: BTreeSet<ServiceName> = BTreeSet::new();

/// All claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Claims(BTreeMap<Arc<str>, Claimants>);

impl Claims {
    /// Services with instances; only where none of them claims it those without.
    pub(super) fn of(&self, proto: &str) -> &BTreeSet<ServiceName> {
        match self.0.get(proto) {
            Some(claimants) if claimants.used.is_empty() => &claimants.empty,
            Some(claimants) => &claimants.used,
            None => &NOBODY,
        }
    }

    /// Puts what a service claims now in the place of what it claimed before.
    pub(super) fn change(&mut self, service: &ServiceName, before: Claim, now: Claim) {
        if now == before {
            return;
        }
        for proto in before.protos {
            if let Some(claimants) = self.0.get_mut(&proto) {
                claimants.of(before.empty).remove(service);
                if *claimants == Claimants::default() {
                    self.0.remove(&proto);
                }
            }
        }
        for proto in now.protos {
            let claimants = self.0.entry(proto).or_default();
            claimants.of(now.empty).insert(service.clone());
        }
    }
}
