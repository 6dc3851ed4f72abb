//! One client: all its subscriptions, matched against the snapshots in make-before-break order. It decides the next
//! response, if one may be sent. Pure. The variant of the protocol is a type parameter.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;

use heddle_proto::xds::v1::Schema;
use prost::Message as _;

use super::{ClientView, Hold, Subscription, Violation, node::cut};
use crate::snapshot::{FLOW, Kind, PerKind, ROUTES, Resource, Snapshot, TARGETS, made_before};

/// What a stream holds beside its subscriptions: its tasks and queues.
const STREAM: usize = 16 << 10;

/// A variant of the protocol.
pub trait Variant: Send + 'static {
    /// For status and metrics.
    const WORD: &'static str;
    type Request: prost::Message + 'static;
    type Response: prost::Message + 'static;

    fn node(request: &Self::Request) -> Option<&Node>;
    fn type_url(request: &Self::Request) -> &str;
    /// The revision that the client says it saw; 0 if it does not say.
    fn revision(request: &Self::Request) -> u64;
    /// How many names it carries.
    fn names(request: &Self::Request) -> usize;
    fn on_request(
        subscription: &mut Subscription,
        request: &Self::Request,
        view: &ClientView,
    ) -> Result<RequestOutcome, Violation>;
    /// What is to be sent of one type now; none while a response of it is under way.
    fn compose(
        subscription: &mut Subscription,
        snapshot: &Snapshot,
        view: &ClientView,
        hold: &Hold,
    ) -> Option<Self::Response>;
}

/// What a request said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    Subscribed,
    Acknowledged,
    Rejected,
    /// About a response that a newer one has overtaken.
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

    /// A newer snapshot is there: notes what of it concerns the client.
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
                if subscription.is_asked() && kind != Kind::Schema {
                    subscription.mark_all_pending();
                }
            }
        }
        self.generation = snapshot.generation;
    }

    /// The next response, if one may go out now. Call until there is none.
    pub fn next<V: Variant>(&mut self, snapshot: &Snapshot) -> Option<(Kind, V::Response)> {
        // A second look: what the first finds settled may release a removal that it held back.
        self.look::<V>(snapshot)
            .or_else(|| self.look::<V>(snapshot))
    }

    fn look<V: Variant>(&mut self, snapshot: &Snapshot) -> Option<(Kind, V::Response)> {
        for kind in FLOW {
            let blocked = made_before(kind)
                .iter()
                .any(|&first| self.subscriptions.get(first).unsent(snapshot, &self.view));
            if blocked || !self.subscriptions.get(kind).is_asked() {
                continue;
            }
            let hold = self.hold(kind);
            let subscription = self.subscriptions.get_mut(kind);
            if let Some(response) = V::compose(subscription, snapshot, &self.view, &hold) {
                return Some((kind, response));
            }
        }
        None
    }

    /// What goes after what points there has gone: when that was told and acknowledged. Of what the client refused
    /// it has the last that it took, and what that points at has to stay.
    fn hold(&self, kind: Kind) -> Hold {
        if !TARGETS.contains(&kind) {
            return Hold::Nothing;
        }
        let mut used = BTreeSet::new();
        for &route in ROUTES {
            let routes = self.subscriptions.get(route);
            if !routes.is_settled() || !routes.still_uses(&mut used) {
                return Hold::Everything;
            }
        }
        if used.is_empty() {
            Hold::Nothing
        } else {
            Hold::These(used)
        }
    }

    /// Newer states of large resources wait, or wait no longer.
    pub fn hold_back_large(&mut self, wait: bool) {
        self.view.large_wait = wait;
    }

    /// A response is under way that the client still has a reason to answer.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        let mut kinds = Kind::ALL.into_iter();
        kinds.any(|kind| self.subscriptions.get(kind).awaits_answer())
    }

    /// A schema that the client waits for and that is not fetched yet.
    #[must_use]
    pub fn wanted_schema(&self) -> Option<Arc<str>> {
        let schemas = self.subscriptions.get(Kind::Schema);
        if !schemas.is_asked() || schemas.in_flight() {
            return None;
        }
        schemas.pending_names().next().cloned()
    }

    /// A schema was fetched, or is not there (yet). Gives the response that tells the client, if one is needed. The
    /// descriptors travel as the service gave them; they are not kept here.
    pub fn schema_fetched<V: Variant>(
        &mut self,
        snapshot: &Snapshot,
        name: &Arc<str>,
        descriptors: Option<Bytes>,
    ) -> Option<V::Response> {
        let resource = descriptors.map(|descriptors| schema(name, descriptors));
        self.view.schema = Some((Arc::clone(name), resource));
        let subscription = self.subscriptions.get_mut(Kind::Schema);
        let response = V::compose(subscription, snapshot, &self.view, &Hold::Nothing);
        self.view.schema = None;
        subscription.drop_content(name);
        response
    }

    /// The client asked for schemas that are not there.
    #[must_use]
    pub fn has_missing_schemas(&self) -> bool {
        self.subscriptions.get(Kind::Schema).has_absent()
    }

    /// Looks again for schemas that were not there.
    pub fn retry_schemas(&mut self) {
        self.subscriptions
            .get_mut(Kind::Schema)
            .mark_absent_pending();
    }
}

impl ClientState {
    /// What is kept of this client, in bytes.
    pub(super) fn cost(&self) -> usize {
        let kinds = Kind::ALL.into_iter();
        STREAM
            + kinds
                .map(|kind| self.subscription(kind).cost())
                .sum::<usize>()
    }
}

/// Its name is its content's hash, so the version never changes.
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
