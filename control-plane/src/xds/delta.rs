//! Delta: requests add and take away names, responses carry what changed and what went. Pure. Source: the xDS protocol
//! document, "Incremental xDS", and the comments of `DeltaDiscoveryRequest`.

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};

use super::{
    Heard, Hold, Lens, Subscription, Variant, Violation, max_response_bytes,
    subscription::Mark,
    wire::{ControlPlane, DeltaDiscoveryResponse},
};
use crate::snapshot::{Kind, Snapshot};

/// Ends the version of our own types while more parts of a wildcard's first answer follow.
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

    /// No place for it in this variant: it stands in the node's metadata.
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
        lens: &Lens,
    ) -> Result<Heard, Violation> {
        subscription.check_names(
            &request.resource_names_subscribe,
            subscription.names().len(),
        )?;
        subscription.check_names(request.initial_resource_versions.keys(), 0)?;
        let heard = settle(subscription, request);
        let first = !subscription.is_asked();
        subscription.mark_asked();
        if first {
            begin(subscription, request);
        }
        for name in &request.resource_names_subscribe {
            if name != "*" {
                // On the first request the client has just said what it holds: only what differs is news.
                let forced = !(first && subscription.holds(name));
                subscription.want(name.as_str().into(), forced);
            } else if !first && subscription.kind() != Kind::Schema {
                subscription.want_all();
                subscription.owe_answer();
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                subscription.unwant_all();
            } else if let Some(name) = subscription.unwant(name, lens) {
                // Still covered by the wildcard, which the client has to be told.
                subscription.send_again(name);
            }
        }
        Ok(heard)
    }

    fn compose(
        subscription: &mut Subscription,
        snapshot: &Snapshot,
        lens: &Lens,
        hold: &Hold,
    ) -> Option<DeltaDiscoveryResponse> {
        if !subscription.is_asked() || subscription.in_flight() {
            return None;
        }
        let limit = max_response_bytes(subscription.kind());
        let mut news = subscription.take_news(snapshot, lens, hold, limit);
        if news.is_empty() && !subscription.owes_answer() {
            return None;
        }
        let mut version = snapshot.revision.to_string();
        if subscription.kind().is_ours() && subscription.is_continued() {
            version.push(MORE);
        }
        let mark = Mark {
            version: version.clone(),
            revision: snapshot.revision,
        };
        let nonce = subscription.launch(mark, &mut news, false);
        Some(DeltaDiscoveryResponse {
            system_version_info: version,
            resources: news.resources.iter().map(|each| each.wrapped()).collect(),
            type_url: subscription.kind().url().to_owned(),
            nonce,
            removed_resources: news.removed.iter().map(ToString::to_string).collect(),
            control_plane: Some(ControlPlane::ours()),
        })
    }
}

fn settle(subscription: &mut Subscription, request: &DeltaDiscoveryRequest) -> Heard {
    if request.response_nonce.is_empty() {
        return Heard::Subscribed;
    }
    if !subscription.awaits(&request.response_nonce) {
        return Heard::Stale;
    }
    match &request.error_detail {
        Some(error) => {
            subscription.settle(Some(&error.message));
            Heard::Rejected
        }
        None => {
            subscription.settle(None);
            Heard::Acknowledged
        }
    }
}

/// The first request of a type on a stream: naming nothing means everything, and what the client brings from an
/// earlier stream is not sent again.
fn begin(subscription: &mut Subscription, request: &DeltaDiscoveryRequest) {
    let names = &request.resource_names_subscribe;
    for (name, version) in &request.initial_resource_versions {
        subscription.brings(name.as_str().into(), version);
    }
    if subscription.kind() == Kind::Schema {
        return;
    }
    subscription.start(names.is_empty() || names.iter().any(|name| name == "*"));
}
