//! The state-of-the-world variant: each request names everything that the client wants; each response for listeners and
//! clusters has all of them. Pure. Source: the xDS protocol document, "Basic Protocol Overview", "How the client
//! specifies what resources to return", "ACK/NACK and resource type instance version".

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use sha2::Digest as _;

use super::{
    ClientView, DeferredRemovals, RequestOutcome, Subscription, Variant, Violation,
    max_response_bytes,
    subscription::ResponseVersion,
    wire::{ControlPlane, DiscoveryResponse},
};
use crate::snapshot::{Kind, Resource, Snapshot, version_of};

/// The variant behind `StreamAggregatedResources`.
#[derive(Debug)]
pub struct Sotw;

impl Variant for Sotw {
    const WORD: &'static str = "sotw";
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn type_url(request: &DiscoveryRequest) -> &str {
        &request.type_url
    }

    /// Versions are `<revision>/<hash>`; those of another control plane give no revision.
    fn revision(request: &DiscoveryRequest) -> u64 {
        request
            .version_info
            .split_once('/')
            .and_then(|(revision, _)| revision.parse().ok())
            .unwrap_or(0)
    }

    fn names(request: &DiscoveryRequest) -> usize {
        request.resource_names.len()
    }

    fn on_request(
        subscription: &mut Subscription,
        request: &DiscoveryRequest,
        view: &ClientView,
    ) -> Result<RequestOutcome, Violation> {
        subscription.check_names(&request.resource_names, 0)?;
        let first = !subscription.has_requested();
        let nonce = request.response_nonce.as_str();
        if !first && !nonce.is_empty() && !subscription.is_last(nonce) {
            return Ok(RequestOutcome::Stale);
        }
        let answers = subscription.awaits(nonce);
        let outcome = match (&request.error_detail, answers) {
            (Some(error), true) => {
                subscription.on_answer(Some(&error.message));
                RequestOutcome::Rejected
            }
            (None, true) => {
                subscription.on_answer(None);
                RequestOutcome::Acknowledged
            }
            (_, false) => RequestOutcome::Subscribed,
        };
        let changed = subscribe(subscription, &request.resource_names, view, first);
        if first {
            require_answer(subscription);
        } else if !changed && !answers && request.error_detail.is_none() {
            // The client requests the same names again: it may have dropped what it had.
            ask_again(subscription);
        }
        Ok(outcome)
    }

    fn compose(
        subscription: &mut Subscription,
        snapshot: &Snapshot,
        view: &ClientView,
        deferred: &DeferredRemovals,
    ) -> Option<DiscoveryResponse> {
        if !subscription.has_requested() || subscription.in_flight() {
            return None;
        }
        let kind = subscription.kind();
        // A whole state cannot be split: its size depends on the mesh.
        let limit = if kind.whole_state() {
            usize::MAX
        } else {
            max_response_bytes(kind)
        };
        let mut update = subscription.take_update(snapshot, view, deferred, limit);
        // Only a whole state can show that a resource does not exist; for other types clients wait for the resource.
        let nothing =
            update.resources.is_empty() && (update.removed.is_empty() || !kind.whole_state());
        if nothing && !subscription.must_answer() {
            return None;
        }
        let whole = kind.whole_state().then(|| subscription.whole());
        let resources = whole.as_ref().unwrap_or(&update.resources);
        let version = format!("{}/{}", snapshot.revision, hash(resources));
        let mark = ResponseVersion {
            version: version.clone(),
            revision: snapshot.revision,
        };
        let nonce = subscription.on_sent(mark, &mut update, whole.is_some());
        let resources = whole.unwrap_or(update.resources);
        Some(DiscoveryResponse {
            version_info: version,
            resources: resources.iter().map(|each| each.any()).collect(),
            type_url: kind.url().to_owned(),
            nonce,
            control_plane: Some(ControlPlane::ours()),
        })
    }
}

/// Replaces the names; true if that changed what the client wants. An empty list means everything until the client has
/// named something once, and nothing after that.
fn subscribe(
    subscription: &mut Subscription,
    names: &[String],
    view: &ClientView,
    first: bool,
) -> bool {
    let star = names.iter().any(|name| name == "*");
    let nameable = subscription.kind() != Kind::Schema;
    let legacy = subscription.is_everything(names);
    let wildcard = nameable && (star || legacy);
    let wanted: BTreeSet<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| *name != "*")
        .collect();
    let gone: Vec<Arc<str>> = subscription
        .names()
        .iter()
        .filter(|name| !wanted.contains(&***name))
        .cloned()
        .collect();
    let new: Vec<&str> = wanted
        .into_iter()
        .filter(|name| !subscription.names().contains(*name))
        .collect();
    let changed =
        first || wildcard != subscription.is_wildcard() || !gone.is_empty() || !new.is_empty();
    subscription.mark_requested();
    // Names first: a named resource stays when the wildcard ends.
    for name in &new {
        subscription.subscribe((*name).into(), true);
    }
    if wildcard && !subscription.is_wildcard() {
        subscription.subscribe_all();
        require_answer(subscription);
    } else if !wildcard && subscription.is_wildcard() {
        subscription.unsubscribe_all();
    }
    for name in &gone {
        subscription.unsubscribe(name, view);
    }
    if !new.is_empty() && subscription.kind().whole_state() {
        // An answer without the listener or cluster tells the client that it does not exist.
        subscription.require_answer();
    }
    changed
}

/// Even an empty state is an answer, except for schemas: those are sent once they exist.
fn require_answer(subscription: &mut Subscription) {
    if subscription.kind() != Kind::Schema {
        subscription.require_answer();
    }
}

fn ask_again(subscription: &mut Subscription) {
    let names: Vec<_> = subscription.names().iter().cloned().collect();
    for name in names {
        subscription.subscribe(name, true);
    }
    if subscription.is_wildcard() {
        subscription.mark_all_pending();
    }
    require_answer(subscription);
}

/// The hash of the names and versions in a response.
fn hash(resources: &[Arc<Resource>]) -> Arc<str> {
    version_of(|hash| {
        for resource in resources {
            hash.update(resource.name.as_bytes());
            hash.update([0]);
            hash.update(resource.version.as_bytes());
            hash.update([0]);
        }
    })
}
