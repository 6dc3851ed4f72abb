//! What other modules ask of the node session: its status, when a removal is known everywhere, and its end. Every
//! wait is bounded.

use std::time::{Duration, Instant};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout_at,
};

use tokio_util::sync::CancellationToken;

use super::SessionStatus;
use crate::agent::key::InstanceKey;

/// What became of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    pub acknowledged: bool,
    /// Clients that had not acknowledged.
    pub unacknowledged: Vec<String>,
}

pub(super) struct Removal {
    pub(super) key: InstanceKey,
    /// The change of the agent that took it out.
    pub(super) version: u64,
    pub(super) until: Instant,
    pub(super) answer: oneshot::Sender<Acknowledged>,
}

/// A session that broke within this time is taken for one that moves to another replica, and waited for: clients that
/// this node cannot reach itself still call the instance. One that is away for longer is not.
const MOVING: Duration = Duration::from_secs(5);
/// What is left of the wait for the way to the control plane and back.
const WAY: Duration = Duration::from_millis(300);

/// The control plane has so long to take note that this process stops.
pub(super) const ENDING: Duration = Duration::from_millis(500);

/// Asks the session. Clones are one.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) removals: mpsc::Sender<Removal>,
    pub(super) status: watch::Receiver<SessionStatus>,
    /// When the last session that had been welcomed broke; `None` before the first, and while one stands.
    pub(super) lost: watch::Receiver<Option<Instant>>,
    pub(super) stop: CancellationToken,
}

/// What asking came to.
enum Asked {
    Answer(Acknowledged),
    /// Before there was an answer.
    Broke,
}

impl SessionHandle {
    /// The status now; wakes on each change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.clone()
    }

    /// This process was told to stop: leaves the node to its successor. Returns when the control plane knows, or has had
    /// its time.
    pub async fn end(&self) {
        self.stop.cancel();
        let mut status = self.status.clone();
        let ended = status.wait_for(|now| matches!(now, SessionStatus::Off | SessionStatus::Ended));
        let _ = tokio::time::timeout(ENDING * 2, ended).await;
    }

    /// Waits, at most `max_wait`, until every client has acknowledged that the instance is gone. With no control plane
    /// at hand the answer comes at once, with the reason; one that moves to another replica is asked there.
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
            let patience = match now {
                // This node is the whole mesh, and its own table has changed.
                SessionStatus::Off => {
                    return Acknowledged {
                        acknowledged: true,
                        unacknowledged: Vec::new(),
                    };
                }
                SessionStatus::Connected(_) => match self.ask(key, version, until).await {
                    Asked::Answer(answer) => return answer,
                    Asked::Broke => until,
                },
                SessionStatus::Ended => return away("(this proxy stops)"),
                SessionStatus::Superseded(_) => {
                    return away("(another process has this node's name)");
                }
                SessionStatus::Connecting(_) => match *self.lost.borrow() {
                    Some(lost) => until.min(lost + MOVING),
                    None => Instant::now(),
                },
            };
            match timeout_at(patience.into(), status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return away("(this proxy stops)"),
                Err(_) => return away("(the control plane is not connected)"),
            }
        }
    }

    async fn ask(&self, key: &InstanceKey, version: u64, until: Instant) -> Asked {
        let (answer, answered) = oneshot::channel();
        let left = until.saturating_duration_since(Instant::now());
        let removal = Removal {
            key: key.clone(),
            version,
            until: until - WAY.min(left / 2),
            answer,
        };
        if self.removals.try_send(removal).is_err() {
            return Asked::Answer(too_many());
        }
        match timeout_at(until.into(), answered).await {
            Ok(Ok(answer)) => Asked::Answer(answer),
            Ok(Err(_)) => Asked::Broke,
            Err(_) => Asked::Answer(away("(the control plane did not answer in time)")),
        }
    }
}

fn away(why: &str) -> Acknowledged {
    Acknowledged {
        acknowledged: false,
        unacknowledged: vec![why.to_owned()],
    }
}

/// Over the bound of removals that wait.
pub(super) fn too_many() -> Acknowledged {
    away("(too many removals wait already)")
}
