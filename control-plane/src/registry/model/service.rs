//! What is known about a service from its instances' last registrations, for the time in which it has no instance.
//! Pure.

use std::sync::Arc;

use heddle_proto::{
    control::v1::{LocalInstance, ProtoService},
    registry::v1::{self as pb, Protocol},
    store::v1::ServiceRecord,
};

use super::Instance;

/// What callers need to know about a service without instances, so that they get "no endpoints" and not "no such
/// service".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownService {
    /// Never "unspecified", except in the default value.
    pub protocol: Protocol,
    /// Sorted by name.
    pub protos: Vec<ProtoService>,
    pub schema_sha256: Option<Arc<str>>,
    /// Whether it claims the paths of `protos`.
    pub claim_paths: bool,
}

impl Default for KnownService {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            protos: Vec::new(),
            schema_sha256: None,
            claim_paths: true,
        }
    }
}

impl KnownService {
    pub(in crate::registry) fn of_local(local: &LocalInstance) -> Self {
        let protocol = local.instance.as_ref().map(pb::Instance::protocol);
        Self::new(
            protocol.unwrap_or_default(),
            local.protos.clone(),
            &local.schema_sha256,
            claims_paths(local.instance.as_ref()),
        )
    }

    pub(in crate::registry) fn of(instance: &Instance) -> Self {
        let schema = instance.schema_sha256.as_deref().unwrap_or_default();
        let protos = instance.protos.clone();
        Self::new(instance.protocol, protos, schema, instance.claim_paths)
    }

    pub(in crate::registry) fn parse(record: ServiceRecord) -> Self {
        let (protocol, claim_paths) = (record.protocol(), !record.no_paths);
        Self::new(protocol, record.protos, &record.schema_sha256, claim_paths)
    }

    fn new(
        protocol: Protocol,
        mut protos: Vec<ProtoService>,
        schema_sha256: &str,
        claim_paths: bool,
    ) -> Self {
        for proto in &mut protos {
            proto.idempotent_methods.sort_unstable();
            proto.idempotent_methods.dedup();
        }
        protos.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            protocol: match protocol {
                Protocol::Unspecified => Protocol::Grpc,
                protocol => protocol,
            },
            protos,
            schema_sha256: (!schema_sha256.is_empty()).then(|| schema_sha256.into()),
            claim_paths,
        }
    }

    pub(in crate::registry) fn record(&self) -> ServiceRecord {
        ServiceRecord {
            protocol: self.protocol.into(),
            protos: self.protos.clone(),
            schema_sha256: self.schema_sha256.as_deref().unwrap_or_default().to_owned(),
            no_paths: !self.claim_paths,
        }
    }

    /// What is known after an instance registered `next`. If it does not list proto services (because it has not been
    /// asked yet), those already known are kept.
    pub(in crate::registry) fn followed_by(&self, next: Self) -> Self {
        if next.protos.is_empty() && next.protocol == self.protocol {
            return Self {
                claim_paths: next.claim_paths,
                ..self.clone()
            };
        }
        next
    }
}

/// Whether an instance claims the paths of its proto services: yes, unless it declines.
pub(in crate::registry) fn claims_paths(instance: Option<&pb::Instance>) -> bool {
    instance.and_then(|it| it.claim_paths).unwrap_or(true)
}

/// The content of the record that is missing for a service with these instances.
pub(in crate::registry) fn record_of<'a>(
    instances: impl Iterator<Item = &'a Arc<Instance>>,
) -> KnownService {
    instances
        .map(|instance| KnownService::of(instance))
        .reduce(|known, next| known.followed_by(next))
        .unwrap_or_default()
}
