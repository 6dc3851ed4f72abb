//! One registered process, parsed from its record. The session decides what may be registered.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use heddle_proto::{
    control::v1::ProtoService,
    registry::v1::{self as pb, Health, Protocol},
    store::v1::InstanceRecord,
};

use super::service::claims_paths;
use crate::names::{InstanceKey, ServiceName};

/// One registered process. Protocol, weight and health are never "unspecified" here.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub node: Arc<str>,
    pub service: ServiceName,
    pub id: Arc<str>,
    pub address: SocketAddr,
    pub version: Arc<str>,
    pub weight: u32,
    pub health: Health,
    pub health_reason: String,
    pub protocol: Protocol,
    pub protos: Vec<ProtoService>,
    pub schema_sha256: Option<Arc<str>>,
    /// Why its proto services or descriptors are not all known; empty if they are.
    pub schema_reason: String,
    /// Whether it claims the paths of `protos`.
    pub claim_paths: bool,
    pub labels: BTreeMap<String, String>,
    /// As registered, for the registry API.
    pub health_check: Option<pb::HealthCheck>,
    /// The check in use; a number, because a newer proxy may have further kinds.
    pub checked_by: i32,
}

/// Bytes per instance in the view, the store's history and snapshots, without the data that it registers.
pub(crate) const INSTANCE_BYTES: usize = 1 << 10;
/// How many copies are kept of the data that it registers.
pub(crate) const INSTANCE_COPIES: usize = 3;

impl Instance {
    /// An estimate of the memory that it takes in all.
    pub(crate) fn memory_bytes(&self) -> usize {
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 64);
        let protos = self.protos.iter().map(prost::Message::encoded_len);
        let own = self.health_reason.len() + labels.sum::<usize>() + protos.sum::<usize>();
        INSTANCE_BYTES + own * INSTANCE_COPIES
    }

    #[must_use]
    pub fn key(&self) -> InstanceKey {
        InstanceKey {
            node: Arc::clone(&self.node),
            service: self.service.clone(),
            id: Arc::clone(&self.id),
        }
    }

    pub(in crate::registry) fn parse(key: &InstanceKey, record: InstanceRecord) -> Option<Self> {
        let local = record.local?;
        let health = match local.health() {
            Health::Unspecified => Health::Unknown,
            health => health,
        };
        let instance = local.instance?;
        let claim_paths = claims_paths(Some(&instance));
        let protocol = match instance.protocol() {
            Protocol::Unspecified => Protocol::Grpc,
            protocol => protocol,
        };
        Some(Self {
            node: Arc::clone(&key.node),
            service: key.service.clone(),
            id: Arc::clone(&key.id),
            address: instance.address.parse().ok()?,
            version: instance.version.into(),
            weight: instance.weight.max(1),
            health,
            health_reason: local.health_reason,
            protocol,
            protos: local.protos,
            schema_sha256: (!local.schema_sha256.is_empty()).then(|| local.schema_sha256.into()),
            schema_reason: local.schema_reason,
            claim_paths,
            labels: instance.labels.into_iter().collect(),
            health_check: instance.health,
            checked_by: local.checked_by,
        })
    }
}
