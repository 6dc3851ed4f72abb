//! A simulated client that speaks the delta variant.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, Resource},
    google::rpc::Status as Reason,
};
use prost::Message as _;

use super::{Client, ClientResources, ClientVariant, Flavor, revision_of};
use crate::{
    snapshot::Kind,
    xds::{Delta, Variant},
};

type Response = <Delta as Variant>::Response;

/// Names requested on this stream, for types requested by name.
pub(super) type Requested = BTreeMap<Kind, BTreeSet<String>>;

impl ClientVariant for Delta {
    type Requested = Requested;

    fn first(client: &Client, requested: &mut Requested) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = vec![question(client, Kind::Cluster, ["*".to_owned()])];
        match client.flavor {
            Flavor::Everything => {
                requests.push(question(client, Kind::Endpoint, ["*".to_owned()]));
                requests.push(question(client, Kind::ServiceIndex, ["*".to_owned()]));
            }
            Flavor::Proxy => {
                requests.push(question(client, Kind::ServiceIndex, ["*".to_owned()]));
            }
            // An empty list of names is the older form of the wildcard.
            _ => requests.push(question(client, Kind::Listener, [])),
        }
        requests.extend(follow(client, requested, true));
        if let Some(first) = requests.first_mut() {
            first.node = Some(client.node());
        }
        requests
    }

    fn kind(response: &Response) -> Option<Kind> {
        Kind::from_url(&response.type_url)
    }

    fn revision_of_view(response: &Response) -> Option<u64> {
        revision_of(&response.system_version_info)
    }

    fn apply(
        resources: &mut ClientResources,
        kind: Kind,
        response: &Response,
    ) -> Result<(), String> {
        for bytes in &response.resources {
            let resource = Resource::decode(bytes.clone()).map_err(|error| error.to_string())?;
            let value = resource.resource.map(|any| any.value).unwrap_or_default();
            resources.put(kind, &resource.name, &resource.version, &value)?;
        }
        for name in &response.removed_resources {
            // A cluster whose endpoints are removed stays; they are sent again once there are some.
            resources.remove(kind, name);
        }
        Ok(())
    }

    fn answers(
        client: &Client,
        requested: &mut Requested,
        kind: Kind,
        response: &Response,
        rejected: bool,
    ) -> Vec<DeltaDiscoveryRequest> {
        let answer = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: response.nonce.clone(),
            error_detail: rejected.then(|| Reason {
                code: 3,
                message: "rejected at random".to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        };
        let mut answers = vec![answer];
        answers.extend(follow(client, requested, false));
        answers
    }
}

/// Requests what the client's resources refer to, and ends the requests for what they no longer refer to.
fn follow(client: &Client, requested: &mut Requested, first: bool) -> Vec<DeltaDiscoveryRequest> {
    let wanted = client.state(|state| match client.flavor {
        Flavor::Proxy => vec![(Kind::Endpoint, state.resources.names(Kind::Cluster))],
        Flavor::EnvoyDelta => vec![
            (Kind::Endpoint, state.resources.names(Kind::Cluster)),
            (
                Kind::Route,
                state
                    .resources
                    .listeners
                    .values()
                    .flatten()
                    .cloned()
                    .collect(),
            ),
        ],
        _ => vec![],
    });
    let mut requests = Vec::new();
    for (kind, names) in wanted.unwrap_or_default() {
        let before = requested.entry(kind).or_default();
        let new: Vec<String> = names.difference(before).cloned().collect();
        let gone: Vec<String> = before.difference(&names).cloned().collect();
        let begun = !before.is_empty();
        *before = names;
        if new.is_empty() && gone.is_empty() {
            continue;
        }
        let mut next = if first || !begun {
            question(client, kind, new)
        } else {
            DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                resource_names_subscribe: new,
                ..DeltaDiscoveryRequest::default()
            }
        };
        next.resource_names_unsubscribe = gone;
        requests.push(next);
    }
    requests
}

/// A request with the versions that the client has of the type.
fn question(
    client: &Client,
    kind: Kind,
    names: impl IntoIterator<Item = String>,
) -> DeltaDiscoveryRequest {
    let resources = client.state(|state| state.resources.versions.get(&kind).cloned());
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        resource_names_subscribe: names.into_iter().collect(),
        initial_resource_versions: resources
            .flatten()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        ..DeltaDiscoveryRequest::default()
    }
}
