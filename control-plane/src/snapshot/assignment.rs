//! The load assignment of one service for one audience. In come endpoints, out go the canonical content (for the
//! version) and the message that every client accepts: IP addresses, each locality set and with a weight of at
//! least 1 (without it gRPC drops the locality and says nothing), priority 0.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{
            Address, HealthStatus, Locality, Metadata, SocketAddress, address, socket_address,
        },
        endpoint::v3::{
            self as eds, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
        },
    },
    google::protobuf::{Struct, UInt32Value, Value, value},
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// The key under which our proxies find what xDS has no field for.
const METADATA: &str = "heddle";

/// One endpoint as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub node: Arc<str>,
    pub instance: Arc<str>,
    pub version: Arc<str>,
    pub address: SocketAddr,
    /// Where other nodes reach the node's inbound.
    pub inbound: SocketAddr,
    /// At least 1.
    pub weight: u32,
    pub health: HealthStatus,
}

/// What one audience gets of one service.
#[derive(Debug)]
pub struct Assignment {
    pub service: Arc<str>,
    /// With the metadata that our proxies need.
    pub metadata: bool,
    /// Sorted by region, zone, node, instance.
    pub endpoints: Vec<Endpoint>,
}

impl Assignment {
    /// Feeds the content as clients see it: what they do not get is not in it.
    pub(super) fn hash_into(&self, hash: &mut Sha256) {
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        // Changes with the form of the encoding, so that a new release is not taken for the old content.
        put(b"assignment 1");
        put(self.service.as_bytes());
        for endpoint in &self.endpoints {
            put(endpoint.region.as_bytes());
            put(endpoint.zone.as_bytes());
            put(endpoint.address.to_string().as_bytes());
            put(&endpoint.weight.to_be_bytes());
            put(&(endpoint.health as i32).to_be_bytes());
            if self.metadata {
                put(endpoint.node.as_bytes());
                put(endpoint.instance.as_bytes());
                put(endpoint.version.as_bytes());
                put(endpoint.inbound.to_string().as_bytes());
            }
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let localities = self
            .endpoints
            .chunk_by(|a, b| (&a.region, &a.zone) == (&b.region, &b.zone))
            .map(|endpoints| self.locality(endpoints))
            .collect();
        ClusterLoadAssignment {
            cluster_name: self.service.to_string(),
            endpoints: localities,
            ..ClusterLoadAssignment::default()
        }
        .encode_to_vec()
    }

    fn locality(&self, endpoints: &[Endpoint]) -> LocalityLbEndpoints {
        let weight = endpoints
            .iter()
            .fold(0_u32, |sum, each| sum.saturating_add(each.weight));
        let (region, zone) = endpoints
            .first()
            .map(|first| (first.region.to_string(), first.zone.to_string()))
            .unwrap_or_default();
        LocalityLbEndpoints {
            locality: Some(Locality {
                region,
                zone,
                sub_zone: String::new(),
            }),
            load_balancing_weight: Some(UInt32Value {
                value: weight.max(1),
            }),
            lb_endpoints: endpoints.iter().map(|each| self.endpoint(each)).collect(),
            priority: 0,
            ..LocalityLbEndpoints::default()
        }
    }

    fn endpoint(&self, endpoint: &Endpoint) -> LbEndpoint {
        LbEndpoint {
            health_status: endpoint.health as i32,
            load_balancing_weight: Some(UInt32Value {
                value: endpoint.weight.max(1),
            }),
            metadata: self.metadata.then(|| metadata(endpoint)),
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
                address: Some(socket_address(endpoint.address)),
                ..eds::Endpoint::default()
            })),
        }
    }
}

pub(super) fn socket_address(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(
                address.port().into(),
            )),
            ..SocketAddress::default()
        })),
    }
}

fn metadata(endpoint: &Endpoint) -> Metadata {
    let text = |text: &str| Value {
        kind: Some(value::Kind::StringValue(text.to_owned())),
    };
    let fields = HashMap::from([
        ("instance".to_owned(), text(&endpoint.instance)),
        ("node".to_owned(), text(&endpoint.node)),
        ("version".to_owned(), text(&endpoint.version)),
        ("inbound".to_owned(), text(&endpoint.inbound.to_string())),
        ("region".to_owned(), text(&endpoint.region)),
        ("zone".to_owned(), text(&endpoint.zone)),
    ]);
    Metadata {
        filter_metadata: HashMap::from([(METADATA.to_owned(), Struct { fields })]),
        ..Metadata::default()
    }
}
