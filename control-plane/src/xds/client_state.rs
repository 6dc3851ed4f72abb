//! One client: compares all its subscriptions with the snapshots in make-before-break order and decides the next
//! response, if one may be sent. Pure. The variant of the protocol is a type parameter.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;

use heddle_proto::xds::v1::Schema;
use prost::Message as _;

use super::{ClientView, DeferredRemovals, Subscription, Violation, node::cut};
use crate::snapshot::{FLOW, Kind, PerKind, ROUTES, Resource, Snapshot, TARGETS, made_before};

/// The memory of a stream besides its subscriptions: its tasks and queues.
const STREAM: usize = 16 << 10;

/// A variant of the protocol.
pub trait Variant: Send + 'static {
    /// For status and metrics.
    const WORD: &'static str;
    type Request: prost::Message + 'static;
    type Response: prost::Message + 'static;

    fn node(request: &Self::Request) -> Option<&Node>;
    fn type_url(request: &Self::Request) -> &str;
    /// The revision that the client says it saw; 0 if unknown.
    fn revision(request: &Self::Request) -> u64;
    /// The number of names in it.
    fn names(request: &Self::Request) -> usize;
    fn on_request(
        subscription: &mut Subscription,
        request: &Self::Request,
        view: &ClientView,
    ) -> Result<RequestOutcome, Violation>;
    /// The next response of one type; none while the client has not answered the last one.
    fn compose(
        subscription: &mut Subscription,
        snapshot: &Snapshot,
        view: &ClientView,
        deferred: &DeferredRemovals,
    ) -> Option<Self::Response>;
}

/// What a request meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    Subscribed,
    Acknowledged,
    Rejected,
    /// It answers a response which is not the newest.
    Stale,
}

/// One connected client.
#[derive(Debug)]
pub struct ClientState {
    view: ClientView,
    subscriptions: PerKind<Subscription>,
    generation: u64,
}

impl ClientState {
    /// A client that connects at this snapshot.
    #[must_use]
    pub fn new(view: ClientView, snapshot: &Snapshot) -> Self {
        Self {
            view,
            subscriptions: PerKind::new(Subscription::new),
            generation: snapshot.generation,
        }
    }

    #[must_use]
    pub fn subscription(&self, kind: Kind) -> &Subscription {
        self.subscriptions.get(kind)
    }

    pub fn on_request<V: Variant>(
        &mut self,
        kind: Kind,
        request: &V::Request,
    ) -> Result<RequestOutcome, Violation> {
        V::on_request(self.subscriptions.get_mut(kind), request, &self.view)
    }

    /// There is a newer snapshot: notes the changes that concern the client.
    pub fn observe(&mut self, snapshot: &Snapshot) {
        if let Some(steps) = snapshot.steps_since(self.generation) {
            for step in steps {
                for kind in Kind::ALL {
                    self.subscriptions.get_mut(kind).observe(step, &self.view);
                }
            }
        } else {
            for kind in Kind::ALL {
                let subscription = self.subscriptions.get_mut(kind);
                if subscription.has_requested() && kind != Kind::Schema {
                    subscription.mark_all_pending();
                }
            }
        }
        self.generation = snapshot.generation;
    }

    /// The next response, if one may be sent now. Call until there is none.
    pub fn next<V: Variant>(&mut self, snapshot: &Snapshot) -> Option<(Kind, V::Response)> {
        // The second pass: what the first finds settled may release a removal that it held back.
        self.next_in_order::<V>(snapshot)
            .or_else(|| self.next_in_order::<V>(snapshot))
    }

    fn next_in_order<V: Variant>(&mut self, snapshot: &Snapshot) -> Option<(Kind, V::Response)> {
        for kind in FLOW {
            let blocked = made_before(kind)
                .iter()
                .any(|&first| self.subscriptions.get(first).unsent(snapshot, &self.view));
            if blocked || !self.subscriptions.get(kind).has_requested() {
                continue;
            }
            let deferred = self.deferred_removals(kind);
            let subscription = self.subscriptions.get_mut(kind);
            if let Some(response) = V::compose(subscription, snapshot, &self.view, &deferred) {
                return Some((kind, response));
            }
        }
        None
    }

    /// Which removals have to wait: a target is removed only after the removal of everything that refers to it was sent
    /// and acknowledged. Of what the client rejected it still has the last version that it accepted, and the targets of
    /// that one stay.
    fn deferred_removals(&self, kind: Kind) -> DeferredRemovals {
        if !TARGETS.contains(&kind) {
            return DeferredRemovals::Nothing;
        }
        let mut used = BTreeSet::new();
        for &route in ROUTES {
            let routes = self.subscriptions.get(route);
            if !routes.is_settled() || !routes.still_uses(&mut used) {
                return DeferredRemovals::Everything;
            }
        }
        if used.is_empty() {
            DeferredRemovals::Nothing
        } else {
            DeferredRemovals::These(used)
        }
    }

    /// Newer states of large resources have to wait, or need no longer wait.
    pub fn hold_back_large(&mut self, wait: bool) {
        self.view.large_wait = wait;
    }

    /// Whether a response is unanswered that the client still has a reason to answer.
    #[must_use]
    pub fn awaits_ack(&self) -> bool {
        let mut kinds = Kind::ALL.into_iter();
        kinds.any(|kind| self.subscriptions.get(kind).awaits_ack())
    }

    /// A schema that the client waits for and that is not fetched yet.
    #[must_use]
    pub fn wanted_schema(&self) -> Option<Arc<str>> {
        let schemas = self.subscriptions.get(Kind::Schema);
        if !schemas.has_requested() || schemas.in_flight() {
            return None;
        }
        schemas.pending_names().next().cloned()
    }

    /// A schema was fetched, or does not exist (yet). Returns the response for the client, if one is needed. The
    /// descriptors are sent as the service registered them, and are not kept here.
    pub fn schema_fetched<V: Variant>(
        &mut self,
        snapshot: &Snapshot,
        name: &Arc<str>,
        descriptors: Option<Bytes>,
    ) -> Option<V::Response> {
        let resource = descriptors.map(|descriptors| schema(name, descriptors));
        self.view.schema = Some((Arc::clone(name), resource));
        let subscription = self.subscriptions.get_mut(Kind::Schema);
        let response = V::compose(
            subscription,
            snapshot,
            &self.view,
            &DeferredRemovals::Nothing,
        );
        self.view.schema = None;
        subscription.drop_content(name);
        response
    }

    /// The client asked for schemas that do not exist.
    #[must_use]
    pub fn has_missing_schemas(&self) -> bool {
        self.subscriptions.get(Kind::Schema).has_absent()
    }

    /// Lets schemas that did not exist be fetched again.
    pub fn retry_schemas(&mut self) {
        self.subscriptions
            .get_mut(Kind::Schema)
            .mark_absent_pending();
    }
}

impl ClientState {
    /// The memory that this client takes, in bytes.
    pub(super) fn cost(&self) -> usize {
        let kinds = Kind::ALL.into_iter();
        STREAM
            + kinds
                .map(|kind| self.subscription(kind).cost())
                .sum::<usize>()
    }
}

/// The name is the hash of the content, so the version never changes.
fn schema(name: &Arc<str>, descriptors: Bytes) -> Arc<Resource> {
    let message = Schema {
        file_descriptor_set: descriptors,
    };
    let version = cut(name, 16).into();
    Resource::with_version(
        Kind::Schema,
        Arc::clone(name),
        version,
        message.encode_to_vec().into(),
    )
}
