//! Removes instances without losing a call: the instance drains, this node's workers and then all other clients learn
//! of it, the instance is removed, and its calls in flight end. Input: a registration, or those of a file. Output:
//! which clients have not acknowledged, and how many calls are left. Every wait is bounded. A removal that has begun
//! is finished even if its caller goes away.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    Agent,
    instance_table::Leaving,
    key::InstanceKey,
    removed::Cause,
    session::{Acknowledged, SessionHandle},
};

/// The longest wait for the clients' acknowledgements.
pub const MAX_WAIT: Duration = Duration::from_secs(5);
/// The longest wait for calls in flight to end.
pub const MAX_FINISH: Duration = Duration::from_secs(3600);
/// The wait for calls in flight if the caller gives none.
pub const USUAL_FINISH: Duration = Duration::from_secs(10);
/// This node's own workers apply a change within a turn or two; if it takes longer, the process is in trouble.
const APPLIED_WITHIN: Duration = Duration::from_secs(1);

/// The calls to this node's instances, as the data path counts them.
#[tonic::async_trait]
pub trait Calls: Send + Sync {
    /// The endpoint number of an instance in the routing table.
    fn endpoint(&self, key: &InstanceKey) -> Option<u64>;
    /// Waits, at most `within`, until no call is in flight on an endpoint that has left the table. Returns how many are
    /// left.
    async fn ended(&self, endpoint: u64, within: Duration) -> usize;
}

/// The result of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub acknowledged: Acknowledged,
    /// Calls that had not ended; `None` if they were not waited for.
    pub in_flight: Option<usize>,
}

/// See the module documentation. Clones share their state.
#[derive(Clone)]
pub struct Remover {
    agent: Agent,
    session: SessionHandle,
    /// Version of the newest change that the routing table has applied.
    applied: watch::Receiver<u64>,
    calls: Arc<dyn Calls>,
}

impl Remover {
    #[must_use]
    pub fn new(
        agent: Agent,
        session: SessionHandle,
        applied: watch::Receiver<u64>,
        calls: Arc<dyn Calls>,
    ) -> Self {
        Self {
            agent,
            session,
            applied,
            calls,
        }
    }

    /// Removes an instance at once, without draining, because it has already ended. `unasked` is the cause if it did
    /// not ask for it. `None` if the registration is unknown.
    pub async fn now(&self, registration: &str, unasked: Option<Cause>) -> Option<()> {
        let (_, version) = self.agent.remove_instance(registration, unasked)?;
        self.until_applied(version).await;
        Some(())
    }

    /// Drains an instance and removes it once every client has acknowledged, or after `max_wait`. With `max_finish` it
    /// then waits at most that long for its calls to end. `None` if the registration is unknown.
    pub async fn acknowledged(
        &self,
        registration: &str,
        unasked: Option<Cause>,
        max_wait: Duration,
        max_finish: Option<Duration>,
    ) -> Option<Removed> {
        let leaving = self.agent.drain(registration, unasked)?;
        let endpoint = self.calls.endpoint(&leaving.key);
        let remover = self.clone();
        let done =
            tokio::spawn(async move { remover.finish(&[leaving], max_wait.min(MAX_WAIT)).await });
        let acknowledged = done.await.unwrap_or_default();
        let in_flight = match (max_finish, endpoint) {
            (None, _) => None,
            // It was in no routing table, so nobody has called it.
            (Some(_), None) => Some(0),
            (Some(within), Some(endpoint)) => {
                Some(self.calls.ended(endpoint, within.min(MAX_FINISH)).await)
            }
        };
        Some(Removed {
            acknowledged,
            in_flight,
        })
    }

    /// Removes the instances that a file no longer names, in the background. One query to the control plane serves for
    /// all, as they belong to one service.
    pub fn of_file(&self, leaving: Vec<Leaving>) {
        if leaving.is_empty() {
            return;
        }
        let remover = self.clone();
        tokio::spawn(async move {
            let answer = remover.finish(&leaving, MAX_WAIT).await;
            for Leaving { key, .. } in &leaving {
                if answer.acknowledged {
                    info!(instance = %key, "removed: every client has acknowledged it, so the \
                        instance may be stopped");
                } else {
                    let unacknowledged = &answer.unacknowledged;
                    warn!(instance = %key, ?unacknowledged, "removed before every client has acknowledged it");
                }
            }
        });
    }

    async fn finish(&self, leaving: &[Leaving], max_wait: Duration) -> Acknowledged {
        let Some(last) = leaving.iter().max_by_key(|one| one.version) else {
            return Acknowledged::default();
        };
        self.until_applied(last.version).await;
        let answer = self
            .session
            .removal(&last.key, last.version, max_wait)
            .await;
        let mut version = 0;
        for one in leaving {
            if let Some((_, out)) = self.agent.deregister(&one.registration) {
                version = out;
            }
        }
        self.until_applied(version).await;
        answer
    }

    async fn until_applied(&self, version: u64) {
        let mut applied = self.applied.clone();
        let _ = tokio::time::timeout(APPLIED_WITHIN, applied.wait_for(|v| *v >= version)).await;
    }
}
