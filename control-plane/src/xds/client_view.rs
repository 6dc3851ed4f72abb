//! What one client may see of a snapshot: the endpoints of its audience, its own socket listener if it asked for one,
//! and the one schema that was fetched for it.

use std::sync::Arc;

use crate::snapshot::{Audience, Kind, OUTBOUND, Resource, Snapshot};

/// A load assignment of some 300 endpoints.
pub const LARGE: usize = 64 << 10;

/// How one client sees snapshots.
#[derive(Debug)]
pub struct ClientView {
    pub audience: Audience,
    /// `heddle/outbound` at the address that the client's node metadata asks for.
    pub outbound: Option<Arc<Resource>>,
    /// The schema fetched last for this client: its name, and the resource if the store has it.
    pub schema: Option<(Arc<str>, Option<Arc<Resource>>)>,
    /// So many bytes of large resources were sent to the client that newer states of those it has must wait.
    pub large_wait: bool,
}

impl ClientView {
    #[must_use]
    pub const fn new(audience: Audience) -> Self {
        Self {
            audience,
            outbound: None,
            schema: None,
            large_wait: false,
        }
    }

    #[must_use]
    pub fn get<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        kind: Kind,
        name: &str,
    ) -> Option<&'a Arc<Resource>> {
        match kind {
            Kind::Listener if name == OUTBOUND => self.outbound.as_ref(),
            Kind::Schema => match &self.schema {
                Some((fetched, resource)) if **fetched == *name => resource.as_ref(),
                _ => None,
            },
            _ => snapshot.get(kind, self.audience, name),
        }
    }

    /// What a client gets for a name that does not exist. Stock clients would wait for the endpoints of a cluster, and
    /// keep those of a deleted service; an empty assignment ends both. Our proxies are sent that it does not exist.
    #[must_use]
    pub fn stand_in(&self, kind: Kind, name: &Arc<str>) -> Option<Arc<Resource>> {
        (kind == Kind::Endpoint && self.audience != Audience::Proxy)
            .then(|| Resource::without_endpoints(Arc::clone(name)))
    }

    /// Whether a wildcard subscription covers this name. That of listeners leaves out API listeners: Envoy takes at
    /// most one of them, from its bootstrap.
    #[must_use]
    pub fn in_wildcard(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Listener => name == OUTBOUND,
            Kind::Schema => false,
            _ => true,
        }
    }

    /// Every name that a wildcard subscription covers.
    pub fn wildcard_names<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        kind: Kind,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let own = self
            .outbound
            .iter()
            .filter(move |_| kind == Kind::Listener)
            .map(|own| &own.name);
        let all = (!matches!(kind, Kind::Listener | Kind::Schema))
            .then(|| snapshot.table(kind, self.audience).keys());
        own.chain(all.into_iter().flatten())
    }

    /// Whether this resource is so large that its rate is limited, and the client has reached that limit.
    #[must_use]
    pub fn holds_back(&self, resource: &Resource) -> bool {
        self.large_wait && resource.size() > LARGE
    }

    /// Whether it is known if this exists; for a schema only once it was fetched.
    #[must_use]
    pub fn knows(&self, kind: Kind, name: &str) -> bool {
        kind != Kind::Schema
            || self
                .schema
                .as_ref()
                .is_some_and(|(fetched, _)| **fetched == *name)
    }
}
