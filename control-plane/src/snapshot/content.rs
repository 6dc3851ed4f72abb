//! What clients may learn of one service: taken from the view, in canonical order, and told apart by audience. In
//! comes the view, out go plain rows; `status` reads the same rule that hides an endpoint. No encoding here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use heddle_proto::{
    control::v1::ProtoService,
    registry::v1::{Health, Protocol},
};

use super::{Assignment, Endpoint};
use crate::registry::{Instance, ServiceName, View};

/// Who asks: it decides which endpoints can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Our own proxies: every instance, with node and inbound.
    Proxy,
    /// Stock clients that reach us over loopback: loopback addresses of nodes that do the same are theirs too.
    DirectLocal,
    /// Stock clients from elsewhere.
    DirectRemote,
}

impl Audience {
    pub const ALL: [Self; 3] = [Self::Proxy, Self::DirectLocal, Self::DirectRemote];
}

/// One service as its resources need it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceContent {
    /// "users.default"
    pub full_name: Arc<str>,
    pub name: ServiceName,
    pub protocol: Protocol,
    /// Union over the instances, sorted by name.
    pub protos: Vec<ProtoService>,
    /// Of most ready instances.
    pub schema_sha256: Option<Arc<str>>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    endpoint: Endpoint,
    loopback_node: bool,
}

impl ServiceContent {
    /// It has no instance left.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.rows.is_empty()
    }

    /// None if the service is not known. One without instances has no endpoints, and stays what it was.
    #[must_use]
    pub fn of(view: &View, name: &ServiceName) -> Option<Self> {
        let instances: Vec<_> = view.instances(name).collect();
        let stands_in = view.stands_in(name);
        let first = instances.first().map(|instance| instance.protocol);
        let protocol = first.or(stands_in.map(|known| known.protocol))?;
        let mut rows: Vec<Row> = instances
            .iter()
            .filter_map(|each| row(view, each))
            .collect();
        rows.sort_by(|a, b| place(&a.endpoint).cmp(&place(&b.endpoint)));
        Some(Self {
            full_name: name.to_string().into(),
            name: name.clone(),
            protocol,
            protos: match stands_in {
                Some(known) => known.protos.clone(),
                None => protos(&instances),
            },
            schema_sha256: schema(&instances)
                .or_else(|| stands_in.and_then(|known| known.schema_sha256.clone())),
            rows,
        })
    }

    #[must_use]
    pub fn assignment(&self, audience: Audience) -> Assignment {
        let mut seen = BTreeMap::new();
        let endpoints = self
            .rows
            .iter()
            .filter(|row| match audience {
                Audience::Proxy => true,
                Audience::DirectLocal | Audience::DirectRemote => {
                    let local = audience == Audience::DirectLocal && row.loopback_node;
                    !drains(&row.endpoint)
                        && reachable(row.endpoint.address.ip(), local)
                        && seen.insert(as_dialled(row.endpoint.address), ()).is_none()
                }
            })
            .map(|row| row.endpoint.clone())
            .collect();
        Assignment {
            service: Arc::clone(&self.full_name),
            metadata: audience == Audience::Proxy,
            endpoints,
        }
    }
}

/// Why clients that are not proxies do not get an endpoint, by its node and instance id; absent if they do.
#[must_use]
pub fn hidden_from_direct_clients(
    view: &View,
    name: &ServiceName,
) -> BTreeMap<(Arc<str>, Arc<str>), String> {
    let mut hidden = BTreeMap::new();
    let mut seen = BTreeMap::new();
    let mut rows: Vec<Row> = view
        .instances(name)
        .filter_map(|each| row(view, each))
        .collect();
    rows.sort_by(|a, b| place(&a.endpoint).cmp(&place(&b.endpoint)));
    for Row {
        endpoint,
        loopback_node,
    } in rows
    {
        let address = endpoint.address;
        let why = if drains(&endpoint) {
            "it is leaving: clients that have no better choice would call it all the same"
                .to_owned()
        } else if address.ip().is_unspecified() || is_of_one_link(address.ip()) {
            format!("{address} is no address that a client can dial")
        } else if !reachable(address.ip(), loopback_node) {
            format!(
                "{address} is a loopback address, and node {} reaches the control plane from elsewhere",
                endpoint.node
            )
        } else if let Some(first) = seen.get(&as_dialled(address)) {
            format!("{address} is also the address of {first}: clients take an address once")
        } else {
            seen.insert(
                as_dialled(address),
                format!("{}/{}", endpoint.node, endpoint.instance),
            );
            continue;
        };
        hidden.insert((endpoint.node, endpoint.instance), why);
    }
    hidden
}

/// Envoy in panic mode (few healthy endpoints) calls those that drain as well: gone for it is what is not there.
fn drains(endpoint: &Endpoint) -> bool {
    endpoint.health == HealthStatus::Draining
}

fn reachable(ip: IpAddr, loopback: bool) -> bool {
    !ip.is_unspecified() && !is_of_one_link(ip) && (loopback || !ip.to_canonical().is_loopback())
}

/// It means a host only together with an interface of the host that dials, and EDS has no place for that.
fn is_of_one_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// What is left of an address in EDS: two that differ in their scope are one there, and gRPC rejects that.
fn as_dialled(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

fn place(endpoint: &Endpoint) -> (&str, &str, &str, &str) {
    (
        &endpoint.region,
        &endpoint.zone,
        &endpoint.node,
        &endpoint.instance,
    )
}

/// None while the node's record is missing: nobody could reach the instance then.
fn row(view: &View, instance: &Instance) -> Option<Row> {
    let node = view.node(&instance.node)?;
    let health = match view.health(instance) {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
        Health::Unknown | Health::Unspecified => HealthStatus::Unknown,
    };
    Some(Row {
        loopback_node: node.loopback,
        endpoint: Endpoint {
            region: node.region.as_str().into(),
            zone: node.zone.as_str().into(),
            node: Arc::clone(&instance.node),
            instance: Arc::clone(&instance.id),
            version: Arc::clone(&instance.version),
            address: instance.address,
            inbound: node.advertise,
            weight: instance.weight.max(1),
            health,
        },
    })
}

/// The union of what the instances serve. A method counts as idempotent only if every instance that serves the
/// proto service says so: a call that is tried again may reach any of them.
fn protos(instances: &[&Arc<Instance>]) -> Vec<ProtoService> {
    let mut union: BTreeMap<&str, ProtoService> = BTreeMap::new();
    for proto in instances.iter().flat_map(|instance| &instance.protos) {
        match union.get_mut(proto.name.as_str()) {
            Some(known) => known
                .idempotent_methods
                .retain(|method| proto.idempotent_methods.contains(method)),
            None => {
                union.insert(&proto.name, proto.clone());
            }
        }
    }
    let mut protos: Vec<_> = union.into_values().collect();
    for proto in &mut protos {
        proto.idempotent_methods.sort_unstable();
        proto.idempotent_methods.dedup();
    }
    protos
}

/// The schema of most ready instances; of several the first by its hash.
fn schema(instances: &[&Arc<Instance>]) -> Option<Arc<str>> {
    let mut votes: BTreeMap<&Arc<str>, (usize, usize)> = BTreeMap::new();
    for instance in instances {
        if let Some(sha256) = &instance.schema_sha256 {
            let (ready, all) = votes.entry(sha256).or_default();
            *ready += usize::from(instance.health == Health::Healthy);
            *all += 1;
        }
    }
    let mut best: Option<(&Arc<str>, (usize, usize))> = None;
    for (sha256, count) in votes {
        if best.is_none_or(|(_, most)| count > most) {
            best = Some((sha256, count));
        }
    }
    best.map(|(sha256, _)| Arc::clone(sha256))
}
