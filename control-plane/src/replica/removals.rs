//! Waits until all clients of all replicas have acknowledged that an instance was removed. Names the clients that have
//! not, and the replicas that did not answer. If a replica dies meanwhile, it is waited for until its record is
//! removed: its clients connect to others, which know of the removal.

use std::{pin::Pin, time::Duration};

use futures_util::future::join_all;
use heddle_proto::control::v1::{AwaitRemovalRequest, AwaitRemovalResponse, InstanceRef};
use tokio::time::{Instant, timeout_at};

use super::{
    Peers,
    peers::{Peer, addressed},
};
use crate::{
    names::InstanceKey,
    registry::{Membership, Registry, View},
    session::Removals,
    snapshot::Publisher,
    store::Revision,
    xds::Clients,
};

/// Time for another replica's answer to travel, in addition to the wait itself.
const ROUND_TRIP: Duration = Duration::from_millis(250);
/// Pause before a replica that refused a request is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The clients of this replica.
#[derive(Clone)]
pub(super) struct OwnClients {
    pub(super) membership: Membership,
    pub(super) publisher: Publisher,
    pub(super) clients: Clients,
}

impl OwnClients {
    pub(super) fn registry(&self) -> &Registry {
        self.membership.registry()
    }

    /// Clients that had not acknowledged the removal when the wait ended; none if this replica had not seen it by then.
    pub(super) async fn unacknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        until: Instant,
    ) -> Option<Vec<String>> {
        if self.membership.registry().read(View::revision) < revision {
            self.membership.request_check();
        }
        let mut snapshots = self.publisher.subscribe();
        // With an older snapshot a connecting client would still get the instance.
        let here = snapshots.wait_for(|snapshot| snapshot.revision >= revision.0);
        timeout_at(until, here).await.ok()?.ok()?;
        let left = until.saturating_duration_since(Instant::now());
        Some(self.clients.acknowledged(instance, revision, left).await)
    }
}

/// Asks this replica and all others.
#[derive(Clone)]
pub struct MeshRemovals {
    own: OwnClients,
    peers: Peers,
}

impl MeshRemovals {
    #[must_use]
    pub fn new(
        membership: Membership,
        publisher: Publisher,
        clients: Clients,
        peers: Peers,
    ) -> Self {
        let own = OwnClients {
            membership,
            publisher,
            clients,
        };
        Self { own, peers }
    }

    async fn query(
        &self,
        instance: InstanceKey,
        revision: Revision,
        wait: Duration,
    ) -> Vec<String> {
        let until = Instant::now() + wait;
        let own = async {
            let own = self.own.unacknowledged(instance.clone(), revision, until);
            own.await
                .unwrap_or_else(|| vec!["(this replica has not seen the removal yet)".to_owned()])
        };
        let peers = self.peers.now();
        let others = peers
            .iter()
            .map(|peer| self.ask_peer(peer, &instance, revision, until));
        let (own, others) = tokio::join!(own, join_all(others));
        let mut names = own;
        names.extend(others.into_iter().flatten());
        names.sort_unstable();
        names.dedup();
        names
    }

    async fn ask_peer(
        &self,
        peer: &Peer,
        instance: &InstanceKey,
        revision: Revision,
        until: Instant,
    ) -> Vec<String> {
        let silent = || vec![format!("(replica {} did not answer)", peer.replica.name)];
        tokio::select! {
            biased;
            () = self.peers.gone(&peer.replica.process_id) => Vec::new(),
            answer = timeout_at(until, answer_of(peer, instance, revision, until)) => match answer {
                Ok(Some(answer)) => answer.unacknowledged,
                Ok(None) | Err(_) => silent(),
            },
        }
    }
}

/// None if it cannot be asked. One that refuses is asked again: it may be reconnecting, or dying.
async fn answer_of(
    peer: &Peer,
    instance: &InstanceKey,
    revision: Revision,
    until: Instant,
) -> Option<AwaitRemovalResponse> {
    let mut client = peer.client.clone()?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = left.saturating_sub(ROUND_TRIP).max(left / 2);
        let message = AwaitRemovalRequest {
            node: instance.node.to_string(),
            instance: Some(InstanceRef {
                service: instance.service.service.clone(),
                namespace: instance.service.namespace.clone(),
                id: instance.id.to_string(),
            }),
            revision: revision.0,
            max_wait: wait.try_into().ok(),
        };
        let mut request = addressed(&peer.replica, message);
        request.set_timeout(left);
        match client.await_removal(request).await {
            Ok(answer) => return Some(answer.into_inner()),
            Err(status) => {
                let (replica, cause) = (&peer.replica.name, status.message());
                tracing::debug!(%replica, cause, "cannot get the acknowledgements of a removal from another replica");
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

impl Removals for MeshRemovals {
    fn acknowledged(
        &self,
        instance: InstanceKey,
        revision: Revision,
        max_wait: Duration,
    ) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>> {
        let removals = self.clone();
        Box::pin(async move { removals.query(instance, revision, max_wait).await })
    }
}
