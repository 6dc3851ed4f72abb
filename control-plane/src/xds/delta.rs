//! The delta variant: requests add and remove names, responses carry what changed and what was removed. Pure. Source:
//! the xDS protocol document, "Incremental xDS", and the comments of `DeltaDiscoveryRequest`.

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};

use super::{
    ClientView, DeferredRemovals, RequestOutcome, Subscription, Variant, Violation,
    max_response_bytes,
    subscription::ResponseVersion,
    wire::{ControlPlane, DeltaDiscoveryResponse},
};
use crate::snapshot::{Kind, Snapshot};

/// Appended to the version of our own types while more parts of a wildcard's first answer follow.
const MORE: char = '+';

/// The variant behind `DeltaAggregatedResources`.
#[derive(Debug)]
pub struct Delta;

impl Variant for Delta {
    const WORD: &'static str = "delta";
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn type_url(request: &DeltaDiscoveryRequest) -> &str {
        &request.type_url
    }

    /// Delta requests have no field for it: it is in the node's metadata.
    fn revision(_: &DeltaDiscoveryRequest) -> u64 {
        0
    }

    fn names(request: &DeltaDiscoveryRequest) -> usize {
        request.resource_names_subscribe.len()
            + request.resource_names_unsubscribe.len()
            + request.initial_resource_versions.len()
    }

    fn on_request(
        subscription: &mut Subscription,
        request: &DeltaDiscoveryRequest,
        view: &ClientView,
    ) -> Result<RequestOutcome, Violation> {
        subscription.check_names(
            &request.resource_names_subscribe,
            subscription.names().len(),
        )?;
        subscription.check_names(request.initial_resource_versions.keys(), 0)?;
        let outcome = on_answer(subscription, request);
        let first = !subscription.has_requested();
        subscription.mark_requested();
        if first {
            begin(subscription, request);
        }
        for name in &request.resource_names_subscribe {
            if name != "*" {
                // On the first request the client has just listed what it has: only what differs is sent.
                let forced = !(first && subscription.client_has(name));
                subscription.subscribe(name.as_str().into(), forced);
            } else if !first && subscription.kind() != Kind::Schema {
                subscription.subscribe_all();
                subscription.require_answer();
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                subscription.unsubscribe_all();
            } else if let Some(name) = subscription.unsubscribe(name, view) {
                // The wildcard still covers the name: sending it again tells the client so.
                subscription.send_again(name);
            }
        }
        Ok(outcome)
    }

    fn compose(
        subscription: &mut Subscription,
        snapshot: &Snapshot,
        view: &ClientView,
        deferred: &DeferredRemovals,
    ) -> Option<DeltaDiscoveryResponse> {
        if !subscription.has_requested() || subscription.in_flight() {
            return None;
        }
        let limit = max_response_bytes(subscription.kind());
        let mut update = subscription.take_update(snapshot, view, deferred, limit);
        if update.is_empty() && !subscription.must_answer() {
            return None;
        }
        let mut version = snapshot.revision.to_string();
        if subscription.kind().is_ours() && subscription.is_continued() {
            version.push(MORE);
        }
        let mark = ResponseVersion {
            version: version.clone(),
            revision: snapshot.revision,
        };
        let nonce = subscription.on_sent(mark, &mut update, false);
        Some(DeltaDiscoveryResponse {
            system_version_info: version,
            resources: update.resources.iter().map(|each| each.wrapped()).collect(),
            type_url: subscription.kind().url().to_owned(),
            nonce,
            removed_resources: update.removed.iter().map(ToString::to_string).collect(),
            control_plane: Some(ControlPlane::ours()),
        })
    }
}

fn on_answer(subscription: &mut Subscription, request: &DeltaDiscoveryRequest) -> RequestOutcome {
    if request.response_nonce.is_empty() {
        return RequestOutcome::Subscribed;
    }
    if !subscription.awaits(&request.response_nonce) {
        return RequestOutcome::Stale;
    }
    match &request.error_detail {
        Some(error) => {
            subscription.on_answer(Some(&error.message));
            RequestOutcome::Rejected
        }
        None => {
            subscription.on_answer(None);
            RequestOutcome::Acknowledged
        }
    }
}

/// The first request of a type on a stream: an empty list of names means everything, and what the client has from an
/// earlier stream is not sent again.
fn begin(subscription: &mut Subscription, request: &DeltaDiscoveryRequest) {
    let names = &request.resource_names_subscribe;
    for (name, version) in &request.initial_resource_versions {
        subscription.note_known(name.as_str().into(), version);
    }
    if subscription.kind() == Kind::Schema {
        return;
    }
    subscription.start(names.is_empty() || names.iter().any(|name| name == "*"));
}
