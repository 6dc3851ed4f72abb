//! What the other rooms ask of the session: how it stands, and when a removal is known everywhere. Every wait is
//! bounded, and without a control plane the answer comes at once.

use std::time::{Duration, Instant};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

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

/// Asks the session. Clones are one.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) removals: mpsc::Sender<Removal>,
    pub(super) status: watch::Receiver<SessionStatus>,
}

impl SessionHandle {
    /// The status now; wakes on each change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.clone()
    }

    /// Waits, within bounds, until every client has acknowledged that the instance is gone. With no control plane at
    /// hand the answer comes at once.
    pub async fn removal(
        &self,
        key: &InstanceKey,
        version: u64,
        max_wait: Duration,
    ) -> Acknowledged {
        let away = |why: &str| Acknowledged {
            acknowledged: false,
            unacknowledged: vec![why.to_owned()],
        };
        match &*self.status.borrow() {
            // This node is the whole mesh, and its own table has changed.
            SessionStatus::Off => {
                return Acknowledged {
                    acknowledged: true,
                    unacknowledged: Vec::new(),
                };
            }
            SessionStatus::Connected(_) => {}
            _ => return away("(the control plane is not connected)"),
        }
        let (answer, answered) = oneshot::channel();
        let removal = Removal {
            key: key.clone(),
            version,
            until: Instant::now() + max_wait,
            answer,
        };
        if self.removals.try_send(removal).is_err() {
            return away("(too many removals wait already)");
        }
        // The control plane keeps to max_wait; the margin is for the way.
        match timeout(max_wait + Duration::from_millis(500), answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => away("(the session broke)"),
            Err(_) => away("(the control plane did not answer in time)"),
        }
    }
}
