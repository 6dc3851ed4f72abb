//! A simulated client that speaks the state-of-the-world variant.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        service::discovery::v3::DiscoveryRequest,
    },
    google::{protobuf::Any, rpc::Status as Reason},
};
use prost::Message as _;

use super::{Client, ClientResources, ClientVariant, Flavor, revision_of};
use crate::{
    snapshot::Kind,
    xds::{Sotw, Variant},
};

type Response = <Sotw as Variant>::Response;

/// Per type: the names requested last, and the nonce of the last response.
pub(super) type Requested = BTreeMap<Kind, (Vec<String>, String)>;

impl ClientVariant for Sotw {
    type Requested = Requested;

    fn first(client: &Client, requested: &mut Requested) -> Vec<DiscoveryRequest> {
        let mut requests = follow(client, requested);
        if let Some(first) = requests.first_mut() {
            first.node = Some(client.node());
        }
        requests
    }

    fn kind(response: &Response) -> Option<Kind> {
        Kind::from_url(&response.type_url)
    }

    fn revision_of_view(response: &Response) -> Option<u64> {
        revision_of(&response.version_info)
    }

    fn apply(
        resources: &mut ClientResources,
        kind: Kind,
        response: &Response,
    ) -> Result<(), String> {
        let mut sent = BTreeSet::new();
        for bytes in &response.resources {
            let any = Any::decode(bytes.clone()).map_err(|error| error.to_string())?;
            let name = name_of(kind, &any.value).map_err(|error| error.to_string())?;
            resources.put(kind, &name, &response.version_info, &any.value)?;
            sent.insert(name);
        }
        // Clusters and listeners that are missing in a response are deleted (xDS, "Deleting Resources").
        if matches!(kind, Kind::Cluster | Kind::Listener) {
            for gone in resources.names(kind).difference(&sent) {
                resources.remove(kind, gone);
            }
        }
        // Clients drop what nothing refers to any more.
        let routes: BTreeSet<String> = resources.listeners.values().flatten().cloned().collect();
        for gone in resources.names(Kind::Route).difference(&routes) {
            resources.remove(Kind::Route, gone);
        }
        if resources.flavor == Flavor::Grpc {
            for gone in resources
                .names(Kind::Cluster)
                .difference(&resources.targets())
            {
                resources.remove(Kind::Cluster, gone);
            }
        }
        let clusters = resources.names(Kind::Cluster);
        for gone in resources.names(Kind::Endpoint).difference(&clusters) {
            resources.remove(Kind::Endpoint, gone);
        }
        resources
            .accepted
            .insert(kind, response.version_info.clone());
        Ok(())
    }

    fn answers(
        client: &Client,
        requested: &mut Requested,
        kind: Kind,
        response: &Response,
        rejected: bool,
    ) -> Vec<DiscoveryRequest> {
        let names = wanted(client).remove(&kind);
        let last = requested.entry(kind).or_default();
        last.1.clone_from(&response.nonce);
        if let Some(names) = names {
            last.0 = names;
        }
        let mut answer = request(client, kind, last);
        if rejected {
            answer.error_detail = Some(Reason {
                code: 3,
                message: "rejected at random".to_owned(),
                details: Vec::new(),
            });
        }
        let mut answers = vec![answer];
        answers.extend(follow(client, requested));
        answers
    }
}

/// What the client wants of each type that it now requests; an empty list is the wildcard.
fn wanted(client: &Client) -> BTreeMap<Kind, Vec<String>> {
    let wanted = client.state(|state| {
        let resources = &state.resources;
        let clusters: Vec<String> = resources.names(Kind::Cluster).into_iter().collect();
        let routes: BTreeSet<String> = resources.listeners.values().flatten().cloned().collect();
        let routes: Vec<String> = routes.into_iter().collect();
        let mut wanted = BTreeMap::new();
        if client.flavor == Flavor::Envoy {
            wanted.insert(Kind::Cluster, vec![]);
            wanted.insert(Kind::Listener, vec![]);
        } else {
            wanted.insert(Kind::Listener, vec![resources.service.clone()]);
            let to = resources.targets();
            if !to.is_empty() {
                wanted.insert(Kind::Cluster, to.into_iter().collect());
            }
        }
        if !clusters.is_empty() {
            wanted.insert(Kind::Endpoint, clusters);
        }
        if !routes.is_empty() {
            wanted.insert(Kind::Route, routes);
        }
        wanted
    });
    wanted.unwrap_or_default()
}

/// Sends requests for the types whose wanted names changed.
fn follow(client: &Client, requested: &mut Requested) -> Vec<DiscoveryRequest> {
    let mut wanted = wanted(client);
    // What nothing refers to any more is no longer requested; once something was named, an empty list means that.
    for kind in [Kind::Cluster, Kind::Endpoint, Kind::Route] {
        if requested.contains_key(&kind) {
            wanted.entry(kind).or_default();
        }
    }
    let mut requests = Vec::new();
    for (kind, names) in wanted {
        let known = requested
            .get(&kind)
            .is_some_and(|(before, _)| *before == names);
        if known {
            continue;
        }
        let last = requested.entry(kind).or_default();
        last.0 = names;
        let last = last.clone();
        requests.push(request(client, kind, &last));
    }
    requests
}

fn request(
    client: &Client,
    kind: Kind,
    (names, nonce): &(Vec<String>, String),
) -> DiscoveryRequest {
    let accepted = client.state(|state| state.resources.accepted.get(&kind).cloned());
    DiscoveryRequest {
        type_url: kind.url().to_owned(),
        version_info: accepted.flatten().unwrap_or_default(),
        resource_names: names.clone(),
        response_nonce: nonce.clone(),
        ..DiscoveryRequest::default()
    }
}

fn name_of(kind: Kind, value: &[u8]) -> Result<String, prost::DecodeError> {
    Ok(match kind {
        Kind::Cluster => Cluster::decode(value)?.name,
        Kind::Endpoint => ClusterLoadAssignment::decode(value)?.cluster_name,
        Kind::Listener => Listener::decode(value)?.name,
        Kind::Route => RouteConfiguration::decode(value)?.name,
        Kind::ServiceIndex | Kind::Schema => String::new(),
    })
}
