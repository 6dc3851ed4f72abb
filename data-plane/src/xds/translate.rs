//! Decodes one resource into what the routing table needs of it, or into the field that is wrong and why. Pure: one
//! resource at a time, no stream, no other resources.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{HealthStatus, Metadata},
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints},
    },
    google::protobuf::value::Kind,
};
use heddle_proto::registry::v1::Protocol as ProtoProtocol;
use heddle_proto::rules::is_dns_label;
use heddle_proto::xds::v1::{Schema, ServiceIndex};
use prost::{Message as _, bytes::Bytes};

use crate::{
    agent::schema::{self, MAX_SCHEMA_BYTES},
    balance::endpoints::Health,
    route::{ProtoService, Protocol, Rank},
};

/// Why a resource is rejected; sent to the control plane unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Fault {
    pub field: String,
    pub why: String,
}

fn fault(field: impl Into<String>, why: impl Into<String>) -> Fault {
    Fault {
        field: field.into(),
        why: why.into(),
    }
}

/// An instance anywhere in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub id: Arc<str>,
    pub node: Arc<str>,
    pub version: Arc<str>,
    /// The instance's own address, for display: calls go to `inbound`.
    pub address: SocketAddr,
    /// The inbound listener of its node.
    pub inbound: SocketAddr,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub weight: u32,
    pub health: Health,
}

/// The endpoints of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    pub endpoints: Vec<Remote>,
}

/// What one service implements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub protocol: Protocol,
    pub protos: Vec<ProtoService>,
    /// Hex, or empty.
    pub schema_sha256: String,
    /// Why `protos` is empty.
    pub schema_reason: String,
}

/// The most endpoints of one service.
const MAX_ENDPOINTS: usize = 100_000;

/// Splits `users.default` into service and namespace.
///
/// # Errors
/// It is not a full name.
pub fn split_name(name: &str) -> Result<(&str, &str), Fault> {
    match name.split_once('.') {
        Some((service, namespace)) if is_dns_label(service) && is_dns_label(namespace) => {
            Ok((service, namespace))
        }
        _ => Err(fault(
            "name",
            format!("\"{name}\" is not <service>.<namespace>, both DNS labels"),
        )),
    }
}

/// A cluster says only that the service exists and that its endpoints come by EDS.
///
/// # Errors
/// This proxy cannot use it.
pub fn cluster(name: &str, bytes: &Bytes) -> Result<(), Fault> {
    split_name(name)?;
    let cluster = Cluster::decode(bytes.clone()).map_err(|e| fault("resource", e.to_string()))?;
    if cluster.name != name {
        return Err(fault(
            "name",
            format!("\"{}\" is not the resource's name", cluster.name),
        ));
    }
    match cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) if kind == i32::from(DiscoveryType::Eds) => Ok(()),
        other => Err(fault(
            "type",
            format!("{other:?} is not supported: only EDS is"),
        )),
    }
}

/// The endpoints of one service; a single fault rejects them all.
///
/// # Errors
/// This proxy cannot use it.
pub fn assignment(name: &str, bytes: &Bytes) -> Result<Assignment, Fault> {
    split_name(name)?;
    let cla = ClusterLoadAssignment::decode(bytes.clone())
        .map_err(|e| fault("resource", e.to_string()))?;
    if cla.cluster_name != name {
        return Err(fault(
            "cluster_name",
            format!("\"{}\" is not the resource's name", cla.cluster_name),
        ));
    }
    let mut out = Assignment::default();
    let mut seen = HashSet::new();
    for (group, locality) in cla.endpoints.iter().enumerate() {
        for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
            let at = format!("endpoints[{group}].lb_endpoints[{index}]");
            let remote = remote(locality, endpoint)
                .map_err(|f| fault(format!("{at}.{}", f.field), f.why))?;
            if !seen.insert((Arc::clone(&remote.node), Arc::clone(&remote.id))) {
                return Err(fault(
                    at,
                    format!("the instance {}/{} occurs twice", remote.node, remote.id),
                ));
            }
            out.endpoints.push(remote);
        }
    }
    if out.endpoints.len() > MAX_ENDPOINTS {
        return Err(fault(
            "endpoints",
            format!(
                "{} are too many: at most {MAX_ENDPOINTS}",
                out.endpoints.len()
            ),
        ));
    }
    // Sorted, so that equal content is equal in whatever order it was sent.
    out.endpoints
        .sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
    Ok(out)
}

fn remote(locality: &LocalityLbEndpoints, endpoint: &LbEndpoint) -> Result<Remote, Fault> {
    let metadata = endpoint.metadata.as_ref();
    let needed = |key: &str| {
        word(metadata, key)
            .filter(|w| !w.is_empty())
            .ok_or_else(|| fault(format!("metadata.heddle.{key}"), "is missing"))
    };
    let inbound = needed("inbound")?;
    let inbound = inbound.parse().map_err(|_| {
        fault(
            "metadata.heddle.inbound",
            format!("\"{inbound}\" is not IP:port"),
        )
    })?;
    let place = locality.locality.as_ref();
    let or_place =
        |key: &str, of: fn(&envoy_types::pb::envoy::config::core::v3::Locality) -> &str| {
            word(metadata, key)
                .unwrap_or_else(|| place.map(of).unwrap_or_default())
                .into()
        };
    Ok(Remote {
        id: needed("instance")?.into(),
        node: needed("node")?.into(),
        version: word(metadata, "version").unwrap_or_default().into(),
        address: address(endpoint)?,
        inbound,
        region: or_place("region", |l| &l.region),
        zone: or_place("zone", |l| &l.zone),
        weight: endpoint.load_balancing_weight.map_or(1, |w| w.value.max(1)),
        health: match HealthStatus::try_from(endpoint.health_status) {
            Ok(HealthStatus::Healthy | HealthStatus::Degraded) => Health::Healthy,
            Ok(HealthStatus::Unknown) => Health::Unknown,
            Ok(HealthStatus::Draining) => Health::Draining,
            Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
        },
    })
}

fn word<'m>(metadata: Option<&'m Metadata>, key: &str) -> Option<&'m str> {
    match metadata?
        .filter_metadata
        .get("heddle")?
        .fields
        .get(key)?
        .kind
        .as_ref()?
    {
        Kind::StringValue(value) => Some(value),
        _ => None,
    }
}

fn address(endpoint: &LbEndpoint) -> Result<SocketAddr, Fault> {
    use envoy_types::pb::envoy::config::{
        core::v3::{address::Address, socket_address::PortSpecifier},
        endpoint::v3::lb_endpoint::HostIdentifier,
    };
    let missing = || fault("endpoint.address", "is not a socket address with a port");
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
        return Err(missing());
    };
    let Some(Address::SocketAddress(socket)) =
        endpoint.address.as_ref().and_then(|a| a.address.as_ref())
    else {
        return Err(missing());
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return Err(missing());
    };
    let port = u16::try_from(port).map_err(|_| missing())?;
    let ip = socket.address.parse().map_err(|_| {
        fault(
            "endpoint.address",
            format!("\"{}\" is not an IP address", socket.address),
        )
    })?;
    Ok(SocketAddr::new(ip, port))
}

/// What one service implements.
///
/// # Errors
/// This proxy cannot use it.
pub fn index(name: &str, bytes: &Bytes) -> Result<Index, Fault> {
    split_name(name)?;
    let index =
        ServiceIndex::decode(bytes.clone()).map_err(|e| fault("resource", e.to_string()))?;
    if index.service != name {
        return Err(fault(
            "service",
            format!("\"{}\" is not the resource's name", index.service),
        ));
    }
    let hash = &index.schema_sha256;
    if !hash.is_empty() && (hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(fault(
            "schema_sha256",
            format!("\"{hash}\" is not a hex SHA-256"),
        ));
    }
    let claims: HashMap<String, u64> = index
        .claims
        .into_iter()
        .map(|claim| (claim.proto, claim.since))
        .collect();
    let rank = |proto: &str| match claims.get(proto) {
        // An older control plane has no claims: all have the same rank.
        _ if !index.claims_kept => Some(Rank::Unordered),
        None => None,
        Some(0) => Some(Rank::Unordered),
        Some(since) => Some(Rank::Since(*since)),
    };
    let protos = index.protos.into_iter().map(|proto| {
        let claim = rank(&proto.name);
        proto_service(proto, claim)
    });
    Ok(Index {
        protocol: protocol(index.protocol),
        protos: protos.collect(),
        schema_sha256: index.schema_sha256,
        schema_reason: index.schema_reason,
    })
}

/// Converts the registry's form into the routing table's.
#[must_use]
pub fn protocol(protocol: i32) -> Protocol {
    match ProtoProtocol::try_from(protocol) {
        Ok(ProtoProtocol::Http) => Protocol::Http,
        Ok(ProtoProtocol::Tcp) => Protocol::Tcp,
        _ => Protocol::Grpc,
    }
}

/// Converts the registry's form into the routing table's.
#[must_use]
pub fn proto_service(
    proto: heddle_proto::control::v1::ProtoService,
    claim: Option<Rank>,
) -> ProtoService {
    ProtoService {
        name: proto.name,
        idempotent_methods: proto.idempotent_methods,
        claim,
    }
}

/// Descriptors, whose hash must be their name.
///
/// # Errors
/// Too large, or the hash differs.
pub fn descriptors(name: &str, bytes: &Bytes) -> Result<Bytes, Fault> {
    let schema = Schema::decode(bytes.clone()).map_err(|e| fault("resource", e.to_string()))?;
    let set = schema.file_descriptor_set;
    if set.len() > MAX_SCHEMA_BYTES {
        return Err(fault(
            "file_descriptor_set",
            format!("has {} bytes, over the limit of 4 MiB", set.len()),
        ));
    }
    if schema::sha256_hex(&set) != name {
        return Err(fault("file_descriptor_set", "does not match its hash"));
    }
    Ok(set)
}
