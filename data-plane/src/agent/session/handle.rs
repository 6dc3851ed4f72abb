//! What other modules can request of the node session: its status, whether a removal is known everywhere, and to end. Every
//! wait is bounded.

use std::time::{Duration, Instant};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout_at,
};

use tokio_util::sync::CancellationToken;

use super::SessionStatus;
use crate::agent::key::InstanceKey;

/// The answer to a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    pub acknowledged: bool,
    /// Clients that have not acknowledged.
    pub unacknowledged: Vec<String>,
}

pub(super) struct Removal {
    pub(super) key: InstanceKey,
    /// The version of the agent's change that removed it.
    pub(super) version: u64,
    pub(super) until: Instant,
    pub(super) answer: oneshot::Sender<Acknowledged>,
}

/// If the session broke within this time, it is assumed to be moving to another replica and is waited for: clients that
/// this node cannot reach itself still call the instance. If it broke earlier, it is not waited for.
const MOVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The part of the wait that is kept for the round trip to the control plane.
const ROUND_TRIP: Duration = Duration::from_millis(300);

/// The time that the control plane has to acknowledge that this process stops.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// A handle to the session. Clones share their state.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) removals: mpsc::Sender<Removal>,
    pub(super) status: watch::Receiver<SessionStatus>,
    /// When the last session that reached Welcome broke, or when this process took over from another one; `None` before
    /// the first session, and while one is open.
    pub(super) lost: watch::Receiver<Option<Instant>>,
    pub(super) stop: CancellationToken,
}

/// The result of a query.
enum QueryResult {
    Answer(Acknowledged),
    /// The session broke before it answered.
    Broke,
}

impl SessionHandle {
    /// The status now; wakes on each change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.clone()
    }

    /// This process is stopping: leaves the node to its successor. Returns once the control plane has
    /// acknowledged, or after a bounded time.
    pub async fn end(&self) {
        self.stop.cancel();
        let mut status = self.status.clone();
        let ended = status.wait_for(|now| matches!(now, SessionStatus::Off | SessionStatus::Ended));
        let _ = tokio::time::timeout(STOP_TIMEOUT * 2, ended).await;
    }

    /// Waits, at most `max_wait`, until every client has acknowledged the removal of the instance. If no control plane
    /// is connected, it answers at once with the reason. If the session moves to another replica, the query goes to that one.
    pub async fn removal(
        &self,
        key: &InstanceKey,
        version: u64,
        max_wait: Duration,
    ) -> Acknowledged {
        let until = Instant::now() + max_wait;
        let mut status = self.status.clone();
        loop {
            let now = status.borrow_and_update().clone();
            let wait_until = match now {
                // This node is the whole mesh, and its own table has already changed.
                SessionStatus::Off => {
                    return Acknowledged {
                        acknowledged: true,
                        unacknowledged: Vec::new(),
                    };
                }
                SessionStatus::Connected(_) => match self.query(key, version, until).await {
                    QueryResult::Answer(answer) => return answer,
                    QueryResult::Broke => until,
                },
                SessionStatus::Ended => return unacknowledged("(this proxy is stopping)"),
                SessionStatus::Superseded(_) => {
                    return unacknowledged("(another process has this node's name)");
                }
                SessionStatus::Connecting(_) => match *self.lost.borrow() {
                    Some(lost) => until.min(lost + MOVE_TIMEOUT),
                    None => Instant::now(),
                },
            };
            match timeout_at(wait_until.into(), status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return unacknowledged("(this proxy is stopping)"),
                Err(_) => return unacknowledged("(the control plane is not connected)"),
            }
        }
    }

    async fn query(&self, key: &InstanceKey, version: u64, until: Instant) -> QueryResult {
        let (answer, answered) = oneshot::channel();
        let left = until.saturating_duration_since(Instant::now());
        let removal = Removal {
            key: key.clone(),
            version,
            until: until - ROUND_TRIP.min(left / 2),
            answer,
        };
        if self.removals.try_send(removal).is_err() {
            return QueryResult::Answer(too_many());
        }
        match timeout_at(until.into(), answered).await {
            Ok(Ok(answer)) => QueryResult::Answer(answer),
            Ok(Err(_)) => QueryResult::Broke,
            Err(_) => {
                QueryResult::Answer(unacknowledged("(the control plane did not answer in time)"))
            }
        }
    }
}

fn unacknowledged(why: &str) -> Acknowledged {
    Acknowledged {
        acknowledged: false,
        unacknowledged: vec![why.to_owned()],
    }
}

/// The answer when too many removals wait.
pub(super) fn too_many() -> Acknowledged {
    unacknowledged("(too many removals wait already)")
}
