//! The clients of this replica that a request matches, piece by piece, ordered by node id. One client's list of names
//! is kept at a time, and its stream is blocked only while this list is copied.

use std::{
    sync::{Arc, Weak},
    vec,
};

use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;

use super::{
    filter::{InvalidMatcher, NodeFilter},
    pieces::{Piece, Pieces},
};
use crate::{
    snapshot::Kind,
    xds::{Client, Clients, subscription::ResourceStatus},
};

pub(crate) struct OwnPieces {
    /// Weak: clients that leave meanwhile are not kept for a slow reader.
    clients: vec::IntoIter<Weak<Client>>,
    filter: NodeFilter,
    contents: bool,
    now: Option<Pieces>,
}

impl OwnPieces {
    /// The clients that are connected now and still are when their turn comes.
    pub(crate) fn new(
        clients: &Clients,
        question: ClientStatusRequest,
    ) -> Result<Self, InvalidMatcher> {
        let filter = NodeFilter::parse(question.node_matchers)?;
        let clients = clients.sorted();
        Ok(Self {
            clients: clients
                .iter()
                .map(Arc::downgrade)
                .collect::<Vec<_>>()
                .into_iter(),
            filter,
            contents: !question.exclude_resource_contents,
            now: None,
        })
    }

    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.now.as_mut().and_then(Iterator::next) {
                return Some(piece);
            }
            let Some(client) = self.clients.next()?.upgrade() else {
                continue;
            };
            if self.filter.is_about(&client.node.id) {
                self.now = Some(Pieces::new(
                    &client.node,
                    resource_statuses(&client),
                    self.contents,
                ));
            }
            // Thousands of names must not delay other tasks.
            tokio::task::yield_now().await;
        }
    }
}

/// The client's state is locked while names and counted references are copied; they are encoded later.
fn resource_statuses(client: &Client) -> Vec<ResourceStatus> {
    let state = client.state();
    Kind::ALL
        .into_iter()
        .flat_map(|kind| state.subscription(kind).resource_statuses())
        .collect()
}
