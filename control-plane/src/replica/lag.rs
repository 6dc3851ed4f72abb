//! Asks other replicas which revision they have seen, so that this one notices that it lags, for example when its
//! connection to the store is dead. The answers go to the registry's membership, which judges.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use heddle_proto::control::v1::GetRevisionRequest;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Peers,
    peers::{Peer, question},
};
use crate::{registry::Membership, store::Revision};

/// Some are asked this long after the last were, and at once when there is a doubt.
const EVERY: Duration = Duration::from_secs(1);
/// An answer that has not come after this time is left out.
const WITHIN: Duration = Duration::from_millis(800);
/// So many are asked at a time, in turn: however many replicas there are, each has little work with it.
const ASKED: usize = 3;
/// Doubts come as often as removals do: between two rounds of questions there is so long.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks until `stop`.
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
            () = sleep(EVERY) => {}
            () = membership.check_requested() => {}
        }
        let all = peers.now();
        let in_turn = all.iter().cycle().skip(turn).take(ASKED.min(all.len()));
        // Who knew more is asked every time: its word counts for a few seconds only.
        let knew = membership
            .lag()
            .borrow()
            .as_ref()
            .map(|lag| Arc::clone(&lag.by));
        let knew = all
            .iter()
            .filter(|it| Some(&it.replica.name) == knew.as_ref());
        let asked = in_turn.chain(knew);
        join_all(asked.map(|peer| ask(membership, peer))).await;
        membership.update_lag();
        turn = (turn + ASKED).checked_rem(all.len()).unwrap_or(0);
        sleep(PAUSE).await;
    }
}

async fn ask(membership: &Membership, peer: &Peer) {
    let Some(mut client) = peer.client.clone() else {
        return;
    };
    let mut request = question(&peer.replica, GetRevisionRequest {});
    request.set_timeout(WITHIN);
    match timeout(WITHIN, client.get_revision(request)).await {
        Ok(Ok(answer)) => {
            let seen = Revision(answer.into_inner().revision);
            membership.on_peer_revision(&peer.replica.name, seen);
        }
        Ok(Err(status)) => {
            let (replica, cause) = (&peer.replica.name, status.message());
            tracing::debug!(%replica, cause, "another replica does not say which revision it has seen");
        }
        Err(_) => {}
    }
}
