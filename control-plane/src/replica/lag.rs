//! Asks other replicas which revision they have seen, so that this one notices when it lags, for example because its
//! connection to the store is dead. The registry's membership evaluates the answers.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use heddle_proto::control::v1::GetRevisionRequest;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Peers,
    peers::{Peer, addressed},
};
use crate::{registry::Membership, store::Revision};

/// Time between two rounds; a requested check begins earlier.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// An answer that takes longer is ignored.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);
/// How many replicas are queried per round, in turn: however many there are, each has little work.
const PER_ROUND: usize = 3;
/// Shortest time between two rounds: checks are requested as often as there are removals.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks until `stop` is cancelled.
pub fn watch_lag(membership: Membership, peers: Peers, stop: CancellationToken) {
    let tasks = membership.registry().options().tasks.clone();
    tasks.restarted("replica-lag", move || {
        let (membership, peers) = (membership.clone(), peers.clone());
        let watch = async move {
            let follow = membership.update_lag_at_changes();
            tokio::join!(ask_in_turn(&membership, &peers), follow);
        };
        stop.clone().run_until_cancelled_owned(watch)
    });
}

async fn ask_in_turn(membership: &Membership, peers: &Peers) {
    let mut turn = 0;
    loop {
        tokio::select! {
            () = sleep(CHECK_INTERVAL) => {}
            () = membership.check_requested() => {}
        }
        let all = peers.now();
        let in_turn = all.iter().cycle().skip(turn).take(PER_ROUND.min(all.len()));
        // The replica that was ahead is queried every time: its answer counts only for a few seconds.
        let knew = membership
            .lag()
            .borrow()
            .as_ref()
            .map(|lag| Arc::clone(&lag.by));
        let knew = all
            .iter()
            .filter(|it| Some(&it.replica.name) == knew.as_ref());
        let chosen = in_turn.chain(knew);
        join_all(chosen.map(|peer| query(membership, peer))).await;
        membership.update_lag();
        turn = (turn + PER_ROUND).checked_rem(all.len()).unwrap_or(0);
        sleep(PAUSE).await;
    }
}

async fn query(membership: &Membership, peer: &Peer) {
    let Some(mut client) = peer.client.clone() else {
        return;
    };
    let mut request = addressed(&peer.replica, GetRevisionRequest {});
    request.set_timeout(ANSWER_TIMEOUT);
    match timeout(ANSWER_TIMEOUT, client.get_revision(request)).await {
        Ok(Ok(answer)) => {
            let seen = Revision(answer.into_inner().revision);
            membership.on_peer_revision(&peer.replica.name, seen);
        }
        Ok(Err(status)) => {
            let (replica, cause) = (&peer.replica.name, status.message());
            tracing::debug!(%replica, cause, "cannot get the revision of another replica");
        }
        Err(_) => {}
    }
}
