//! The resources of one simulated client, decoded as far as the invariants need it. A route to a cluster that the
//! client does not have is a fault. No protocol here.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::{
    core::v3::address::Address as Place,
    endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
    listener::v3::Listener,
    route::v3::{RouteConfiguration, route::Action, route_action::ClusterSpecifier},
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use prost::Message as _;

use super::{Flavor, Versions};
use crate::snapshot::Kind;

/// Address and health.
pub(in crate::sim) type Endpoints = BTreeMap<String, i32>;

#[derive(Clone, Debug)]
pub(in crate::sim) struct ClientResources {
    pub(in crate::sim) flavor: Flavor,
    /// The service that a gRPC client dials.
    pub(in crate::sim) service: String,
    /// Name and version, by type.
    pub(in crate::sim) versions: BTreeMap<Kind, Versions>,
    pub(in crate::sim) endpoints: BTreeMap<String, Endpoints>,
    /// The clusters that each route (or proto service) refers to.
    routes: BTreeMap<(Kind, String), BTreeSet<String>>,
    /// The routes that each listener refers to.
    pub(in crate::sim) listeners: BTreeMap<String, BTreeSet<String>>,
    /// The newest revision that it was sent.
    pub(in crate::sim) seen: u64,
    /// The state-of-the-world versions that it accepted last.
    pub(in crate::sim) accepted: BTreeMap<Kind, String>,
    /// The types of which it accepted a response on this stream.
    pub(in crate::sim) answered: BTreeSet<Kind>,
}

impl ClientResources {
    /// The empty state of a new client.
    pub(in crate::sim) fn new(flavor: Flavor, service: &str) -> Self {
        Self {
            flavor,
            service: service.to_owned(),
            versions: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            seen: 0,
            accepted: BTreeMap::new(),
            answered: BTreeSet::new(),
        }
    }

    pub(in crate::sim) fn names(&self, kind: Kind) -> BTreeSet<String> {
        self.versions
            .get(&kind)
            .map(|versions| versions.keys().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn put(
        &mut self,
        kind: Kind,
        name: &str,
        version: &str,
        value: &[u8],
    ) -> Result<(), String> {
        match kind {
            Kind::Endpoint => {
                let assignment = ClusterLoadAssignment::decode(value).map_err(text)?;
                self.endpoints
                    .insert(name.to_owned(), endpoints(&assignment)?);
            }
            Kind::Route => {
                let routes = RouteConfiguration::decode(value).map_err(text)?;
                self.routes
                    .insert((kind, name.to_owned()), clusters(&routes));
            }
            Kind::ServiceIndex => {
                let to = BTreeSet::from([name.to_owned()]);
                self.routes.insert((kind, name.to_owned()), to);
            }
            Kind::Listener => {
                let listener = Listener::decode(value).map_err(text)?;
                self.listeners
                    .insert(name.to_owned(), route_names(&listener)?);
            }
            Kind::Cluster | Kind::Schema => {}
        }
        self.versions
            .entry(kind)
            .or_default()
            .insert(name.to_owned(), version.to_owned());
        Ok(())
    }

    pub(super) fn remove(&mut self, kind: Kind, name: &str) {
        if let Some(versions) = self.versions.get_mut(&kind) {
            versions.remove(name);
        }
        match kind {
            Kind::Endpoint => {
                self.endpoints.remove(name);
            }
            Kind::Route | Kind::ServiceIndex => {
                self.routes.remove(&(kind, name.to_owned()));
            }
            Kind::Listener => {
                self.listeners.remove(name);
            }
            Kind::Cluster => {
                // If endpoints are requested by name, they are removed with the cluster and requested again with it.
                if self.flavor != Flavor::Everything {
                    self.remove(Kind::Endpoint, name);
                }
            }
            Kind::Schema => {}
        }
    }

    pub(in crate::sim) fn addresses(&self) -> BTreeSet<String> {
        self.endpoints
            .values()
            .flat_map(|each| each.keys().cloned())
            .collect()
    }

    /// The clusters that its routes refer to.
    pub(super) fn targets(&self) -> BTreeSet<String> {
        self.routes.values().flatten().cloned().collect()
    }

    /// Routes to clusters that the client does not have.
    pub(super) fn faults(&self) -> Vec<String> {
        if self.flavor == Flavor::Grpc {
            // It requests a cluster only after a route names it.
            return Vec::new();
        }
        let held = self.names(Kind::Cluster);
        let mut faults = Vec::new();
        // On a new stream the server does not know yet what the client will request next.
        let requested =
            |kind: &Kind| self.answered.contains(kind) && self.answered.contains(&Kind::Cluster);
        for ((kind, name), to) in self.routes.iter().filter(|((kind, _), _)| requested(kind)) {
            for cluster in to.iter().filter(|cluster| !held.contains(*cluster)) {
                let word = kind.word();
                faults.push(format!(
                    "{word} {name} leads to cluster {cluster}, which it does not hold"
                ));
            }
            if self.flavor == Flavor::Everything {
                for cluster in to
                    .iter()
                    .filter(|cluster| !self.endpoints.contains_key(*cluster))
                {
                    faults.push(format!(
                        "cluster {cluster} is in use and its endpoints were never sent"
                    ));
                }
            }
        }
        faults
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn endpoints(assignment: &ClusterLoadAssignment) -> Result<Endpoints, String> {
    let all = assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints);
    let mut endpoints = Endpoints::new();
    for each in all {
        let Some(HostIdentifier::Endpoint(endpoint)) = &each.host_identifier else {
            return Err("an endpoint without an address".to_owned());
        };
        let place = endpoint
            .address
            .as_ref()
            .and_then(|address| address.address.as_ref());
        let Some(Place::SocketAddress(socket)) = place else {
            return Err("an endpoint without a socket address".to_owned());
        };
        let port = match &socket.port_specifier {
            Some(
                envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier::PortValue(
                    port,
                ),
            ) => *port,
            _ => return Err("an endpoint without a port".to_owned()),
        };
        let address = format!("{}:{port}", socket.address);
        if endpoints
            .insert(address.clone(), each.health_status)
            .is_some()
        {
            return Err(format!("{address} comes twice"));
        }
    }
    Ok(endpoints)
}

fn clusters(routes: &RouteConfiguration) -> BTreeSet<String> {
    let actions = routes
        .virtual_hosts
        .iter()
        .flat_map(|host| &host.routes)
        .filter_map(|route| route.action.as_ref());
    let clusters = actions.filter_map(|action| match action {
        Action::Route(route) => match route.cluster_specifier.as_ref()? {
            ClusterSpecifier::Cluster(cluster) => Some(cluster.clone()),
            _ => None,
        },
        _ => None,
    });
    clusters.collect()
}

fn route_names(listener: &Listener) -> Result<BTreeSet<String>, String> {
    let api = listener
        .api_listener
        .iter()
        .filter_map(|api| api.api_listener.as_ref());
    let filters = listener
        .filter_chains
        .iter()
        .flat_map(|chain| &chain.filters);
    let sockets = filters.filter_map(|filter| match filter.config_type.as_ref()? {
        envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any) => {
            Some(any)
        }
        _ => None,
    });
    let mut names = BTreeSet::new();
    for any in api.chain(sockets) {
        if !any.type_url.ends_with("HttpConnectionManager") {
            continue;
        }
        let manager = HttpConnectionManager::decode(&*any.value).map_err(text)?;
        if let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier {
            names.insert(rds.route_config_name);
        }
    }
    Ok(names)
}
