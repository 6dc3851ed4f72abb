//! The names of services and instances, and the keys of the store. Plain values and text: this module must not depend
//! on the store or the registry, which use it.

use std::{fmt, sync::Arc};

pub mod keys;

/// A service's full name, written `users.default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub service: String,
    pub namespace: String,
}

impl ServiceName {
    /// Parses "users" (in the namespace `default`) or "users.shop"; none if a part is empty or there are more than two.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (service, namespace) = name.split_once('.').unwrap_or((name, "default"));
        if service.is_empty() || namespace.is_empty() || namespace.contains('.') {
            return None;
        }
        Some(Self {
            service: service.to_owned(),
            namespace: namespace.to_owned(),
        })
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.namespace)
    }
}

/// The name of an instance, unique in the mesh; written `<node>/<service>.<namespace>/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    pub node: Arc<str>,
    pub service: ServiceName,
    pub id: Arc<str>,
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.node, self.service, self.id)
    }
}
