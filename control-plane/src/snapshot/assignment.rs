//! The load assignment of one service for one audience: the canonical content (for the version) and the message that
//! every client accepts. Addresses are IP addresses, each locality is set and has a weight of at least 1 (without one
//! gRPC silently drops the locality), and the priority is 0.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{
            Address, HealthStatus, Locality, Metadata, SocketAddress, address, socket_address,
        },
        endpoint::v3::{self as eds, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
    },
    google::protobuf::{Struct, UInt32Value, Value, value},
};
use prost::{
    Message as _,
    encoding::{self, WireType},
};
use sha2::{Digest as _, Sha256};

use super::{Audience, digest::Digest, resource::version_of, row::Row, rows::Rows};

/// The metadata key under which our proxies find what xDS has no field for.
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
    /// Where other nodes reach the inbound listener of the node.
    pub inbound: SocketAddr,
    /// At least 1.
    pub weight: u32,
    pub health: HealthStatus,
}

impl Endpoint {
    /// Hashes what clients see of it; what they do not get is left out.
    pub(super) fn hash_into(&self, metadata: bool, hash: &mut Sha256) {
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        put(self.region.as_bytes());
        put(self.zone.as_bytes());
        put(self.address.to_string().as_bytes());
        put(&self.weight.to_be_bytes());
        put(&(self.health as i32).to_be_bytes());
        if metadata {
            put(self.node.as_bytes());
            put(self.instance.as_bytes());
            put(self.version.as_bytes());
            put(self.inbound.to_string().as_bytes());
        }
    }
}

/// The assignment of one service for one audience.
#[derive(Debug)]
pub struct Assignment {
    service: Arc<str>,
    audience: Audience,
    /// All rows of the service, in canonical order.
    rows: Rows,
    version: Arc<str>,
}

impl Assignment {
    /// `count` and `sum` are those of the endpoints that the audience gets.
    pub(super) fn new(
        service: Arc<str>,
        audience: Audience,
        rows: Rows,
        count: usize,
        sum: &Digest,
    ) -> Self {
        let version = version_of(|hash| {
            // Change this with the form of the encoding, so that the content of a new release has a new version.
            hash.update(b"assignment 2");
            hash.update((service.len() as u64).to_be_bytes());
            hash.update(service.as_bytes());
            hash.update((count as u64).to_be_bytes());
            hash.update(sum.bytes());
        });
        Self {
            service,
            audience,
            rows,
            version,
        }
    }

    /// The assignment of a service that has no endpoints.
    pub(super) fn empty(service: Arc<str>) -> Self {
        Self::new(
            service,
            Audience::Proxy,
            Rows::default(),
            0,
            &Digest::default(),
        )
    }

    #[must_use]
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }

    pub(super) fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// `ClusterLoadAssignment { cluster_name = 1, endpoints = 2 }`, joined from the bytes that each row has encoded
    /// once.
    pub(super) fn encode(&self) -> Vec<u8> {
        let metadata = self.audience == Audience::Proxy;
        let rows = self.visible();
        let bytes: usize = rows.iter().map(|row| row.encoded(metadata).len()).sum();
        let mut buffer = Vec::with_capacity(bytes + rows.len() / 8 + 256);
        encoding::string::encode(1, &self.service.to_string(), &mut buffer);
        let same = |a: &&Row, b: &&Row| {
            (&a.endpoint.region, &a.endpoint.zone) == (&b.endpoint.region, &b.endpoint.zone)
        };
        for rows in rows.chunk_by(same) {
            let head = locality(rows).encode_to_vec();
            let body: usize = rows.iter().map(|row| row.encoded(metadata).len()).sum();
            encoding::encode_key(2, WireType::LengthDelimited, &mut buffer);
            encoding::encode_varint((head.len() + body) as u64, &mut buffer);
            buffer.extend_from_slice(&head);
            for row in rows {
                buffer.extend_from_slice(row.encoded(metadata));
            }
        }
        buffer
    }

    /// The rows that the audience gets: proxies get all; others get each address once, from the first row that has it.
    fn visible(&self) -> Vec<&Row> {
        let rows = self.rows.iter().map(AsRef::as_ref);
        if self.audience == Audience::Proxy {
            return rows.collect();
        }
        let mut seen = HashSet::new();
        rows.filter(|row| {
            let local = self.audience == Audience::DirectLocal;
            row.is_for_direct_clients()
                && (local || !row.is_loopback())
                && seen.insert(row.as_dialled())
        })
        .collect()
    }
}

/// The locality without its endpoints, which follow: the fields of a message may come in any order.
fn locality(rows: &[&Row]) -> LocalityLbEndpoints {
    let weight = rows
        .iter()
        .fold(0_u32, |sum, row| sum.saturating_add(row.endpoint.weight));
    let (region, zone) = rows
        .first()
        .map(|first| {
            let endpoint = &first.endpoint;
            (endpoint.region.to_string(), endpoint.zone.to_string())
        })
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
        priority: 0,
        ..LocalityLbEndpoints::default()
    }
}

/// Encoded as the field `lb_endpoints` (2) of a locality.
pub(super) fn encode_endpoint(endpoint: &Endpoint, with_metadata: bool) -> Vec<u8> {
    let message = LbEndpoint {
        health_status: endpoint.health as i32,
        load_balancing_weight: Some(UInt32Value {
            value: endpoint.weight.max(1),
        }),
        metadata: with_metadata.then(|| metadata(endpoint)),
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(socket_address(endpoint.address)),
            ..eds::Endpoint::default()
        })),
    };
    let mut buffer = Vec::new();
    encoding::message::encode(2, &message, &mut buffer);
    buffer
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
