//! Claimants of paths as the registry knows them: services by name. `heddle_proto::paths` decides which of them is meant
//! by a call.

use heddle_proto::paths::{Claimant, Owner, owner};

use crate::names::ServiceName;

/// The namespace of all callers, until callers have an identity.
pub const CALLERS: &str = "default";

/// The owner of the path in one namespace.
pub fn owner_among<'n>(
    claimants: impl Iterator<Item = Claimant<'n, &'n ServiceName>>,
    namespace: &str,
) -> Owner<&'n ServiceName> {
    let here = |it: &Claimant<'_, &ServiceName>| it.service.namespace == namespace;
    owner(claimants.filter(here).collect())
}
