//! The names that the agent uses: the key of an instance on this node, and the full name of a mesh service.

use std::fmt;

use heddle_proto::control::v1::{GoneInstance, InstanceRef};
use heddle_proto::registry::v1::Instance;

/// The key of one instance of this node. The id is unique per service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    pub namespace: String,
    pub service: String,
    pub id: String,
}

impl InstanceKey {
    /// The key of a checked instance (its namespace is never empty).
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        Self {
            namespace: instance.namespace.clone(),
            service: instance.service.clone(),
            id: instance.id.clone(),
        }
    }

    /// `<service>.<namespace>`.
    #[must_use]
    pub fn full_service(&self) -> String {
        format!("{}.{}", self.service, self.namespace)
    }

    /// The form that the node session uses.
    #[must_use]
    pub fn to_ref(&self) -> InstanceRef {
        InstanceRef {
            service: self.service.clone(),
            namespace: self.namespace.clone(),
            id: self.id.clone(),
        }
    }

    /// The inverse of `to_ref`; an empty namespace means `default`.
    #[must_use]
    pub fn from_ref(name: InstanceRef) -> Self {
        let namespace = if name.namespace.is_empty() {
            "default".to_owned()
        } else {
            name.namespace
        };
        Self {
            namespace,
            service: name.service,
            id: name.id,
        }
    }

    /// The form that the node session uses for a removed instance.
    #[must_use]
    pub fn to_gone(&self, cause: String) -> GoneInstance {
        GoneInstance {
            service: self.service.clone(),
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            cause,
        }
    }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/{}", self.service, self.namespace, self.id)
    }
}

/// `users` and `users.shop` as a full service name.
#[must_use]
pub fn full_name(word: &str) -> String {
    if word.contains('.') {
        word.to_owned()
    } else {
        format!("{word}.default")
    }
}
