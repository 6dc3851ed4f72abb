//! One endpoint as clients see it, with its digest for the version and its bytes. Both are computed once per change,
//! each with and without the fields for our proxies alone. Pure.

use std::{
    cmp::Ordering,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use heddle_proto::registry::v1::Health;

use super::{
    Endpoint,
    assignment::encode_endpoint,
    digest::{self, Digest},
};
use crate::registry::{Instance, View};

#[derive(Debug)]
pub(super) struct Row {
    pub(super) endpoint: Endpoint,
    pub(super) loopback_node: bool,
    /// For our proxies, and for all other clients.
    digests: [Digest; 2],
    encoded: [OnceLock<Box<[u8]>>; 2],
}

impl Row {
    pub(super) fn new(endpoint: Endpoint, loopback_node: bool) -> Self {
        let digest = |metadata| digest::of(|hash| endpoint.hash_into(metadata, hash));
        Self {
            digests: [digest(true), digest(false)],
            encoded: [OnceLock::new(), OnceLock::new()],
            endpoint,
            loopback_node,
        }
    }

    /// Its digest for the version, with the metadata for our proxies or without.
    pub(super) fn digest(&self, metadata: bool) -> &Digest {
        let [with, without] = &self.digests;
        if metadata { with } else { without }
    }

    /// The field `lb_endpoints` of its locality, encoded once.
    pub(super) fn encoded(&self, metadata: bool) -> &[u8] {
        let [with, without] = &self.encoded;
        let encoded = if metadata { with } else { without };
        encoded.get_or_init(|| encode_endpoint(&self.endpoint, metadata).into())
    }

    /// Whether a row of this endpoint would be equal.
    pub(super) fn is_of(&self, endpoint: &Endpoint, loopback_node: bool) -> bool {
        self.endpoint == *endpoint && self.loopback_node == loopback_node
    }

    pub(super) fn place_cmp(&self, other: &Self) -> Ordering {
        place(&self.endpoint).cmp(&place(&other.endpoint))
    }

    /// Whether clients that are not proxies may get it: at least those that connect over loopback.
    pub(super) fn is_for_direct_clients(&self) -> bool {
        !self.drains() && self.is_reachable(self.loopback_node)
    }

    /// Direct clients do not get draining endpoints: in panic mode (few healthy endpoints) Envoy would call them too.
    pub(super) fn drains(&self) -> bool {
        self.endpoint.health == HealthStatus::Draining
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.endpoint.address.ip().to_canonical().is_loopback()
    }

    /// `loopback`: whether the client can reach the loopback addresses of its node.
    pub(super) fn is_reachable(&self, loopback: bool) -> bool {
        self.is_dialled() && (loopback || !self.is_loopback())
    }

    /// Whether its address means the same host wherever it is dialled from.
    pub(super) fn is_dialled(&self) -> bool {
        let ip = self.endpoint.address.ip();
        !ip.is_unspecified() && !is_of_one_link(ip)
    }

    /// Its address as EDS has it: two that differ only in their scope are equal there, and gRPC rejects that.
    pub(super) fn as_dialled(&self) -> (IpAddr, u16) {
        let address: SocketAddr = self.endpoint.address;
        (address.ip().to_canonical(), address.port())
    }
}

/// Such an address means a host only together with an interface of the dialling host, which EDS has no field for.
fn is_of_one_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn place(endpoint: &Endpoint) -> (&str, &str, &str, &str) {
    (
        &endpoint.region,
        &endpoint.zone,
        &endpoint.node,
        &endpoint.instance,
    )
}

/// What clients see of an instance, and whether its node connects over loopback. None while the node's record is
/// missing: the instance cannot be reached then.
pub(super) fn endpoint(view: &View, instance: &Instance) -> Option<(Endpoint, bool)> {
    let node = view.node(&instance.node)?;
    let health = match view.health(instance) {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
        Health::Unknown | Health::Unspecified => HealthStatus::Unknown,
    };
    let endpoint = Endpoint {
        region: node.region.as_str().into(),
        zone: node.zone.as_str().into(),
        node: Arc::clone(&instance.node),
        instance: Arc::clone(&instance.id),
        version: Arc::clone(&instance.version),
        address: instance.address,
        inbound: node.advertise,
        weight: instance.weight.max(1),
        health,
    };
    Some((endpoint, node.loopback))
}
