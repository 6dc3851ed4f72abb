//! What is known of a service from its instances' last registrations, for the time in which it has none. Pure.

use std::sync::Arc;

use heddle_proto::{
    control::v1::{LocalInstance, ProtoService},
    registry::v1::{self as pb, Protocol},
    store::v1::ServiceRecord,
};

use super::Instance;

/// What callers need to know of a service that has no instance: they are told "no endpoints", not "no such service".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownService {
    /// Never "unspecified", but in a default one.
    pub protocol: Protocol,
    /// Sorted by name.
    pub protos: Vec<ProtoService>,
    pub schema_sha256: Option<Arc<str>>,
    /// It claims the paths of `protos`.
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

    /// What is known once an instance has told this. One that has not said yet what it serves (nobody has asked it
    /// so far) takes nothing back.
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

/// Whether an instance claims the paths of what it serves: yes, unless it says no.
pub(in crate::registry) fn claims_paths(instance: Option<&pb::Instance>) -> bool {
    instance.and_then(|it| it.claim_paths).unwrap_or(true)
}

/// What the record of a service would say that has instances and no record.
pub(in crate::registry) fn record_of<'a>(
    instances: impl Iterator<Item = &'a Arc<Instance>>,
) -> KnownService {
    instances
        .map(|instance| KnownService::of(instance))
        .reduce(|known, next| known.followed_by(next))
        .unwrap_or_default()
}
