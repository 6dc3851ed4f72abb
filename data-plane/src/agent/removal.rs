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
    removal_log::Cause,
    session::{Acknowledged, SessionHandle},
};

/// The longest wait for the clients' acknowledgements.
pub const MAX_WAIT: Duration = Duration::from_secs(5);
/// The longest wait for calls in flight to end.
pub const MAX_FINISH: Duration = Duration::from_secs(3600);
/// The wait for calls in flight if the caller gives none.
pub const USUAL_FINISH: Duration = Duration::from_secs(10);
/// This node's own workers apply a change within a turn or two; if it takes longer, the process is in trouble.
const APPLIED_TIMEOUT: Duration = Duration::from_secs(1);

/// The calls to this node's instances, as the data path counts them.
#[tonic::async_trait]
pub trait Calls: Send + Sync {
    /// The endpoint number of an instance in the routing table.
    fn endpoint(&self, key: &InstanceKey) -> Option<u64>;
    /// Waits, at most `within`, until no call is in flight on an endpoint that gets no new ones. Returns how many are
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

    /// Drains an instance until every client has acknowledged, or for `max_wait`; with `max_finish` then until its calls
    /// have ended, at most that long; and removes it. `None` if the registration is unknown.
    pub async fn acknowledged(
        &self,
        registration: &str,
        unasked: Option<Cause>,
        max_wait: Duration,
        max_finish: Option<Duration>,
    ) -> Option<Removed> {
        let finish = max_finish.map(|finish| finish.min(MAX_FINISH));
        let leaving = self
            .agent
            .drain(registration, unasked, finish.unwrap_or_default())?;
        let endpoint = self.calls.endpoint(&leaving.key);
        let remover = self.clone();
        let done = tokio::spawn(async move {
            let leaving = [leaving];
            let acknowledged = remover
                .await_acknowledged(&leaving, max_wait.min(MAX_WAIT))
                .await;
            let in_flight = match (finish, endpoint) {
                (None, _) => None,
                // It was in no routing table, so nobody has called it.
                (Some(_), None) => Some(0),
                (Some(within), Some(endpoint)) => Some(remover.calls.ended(endpoint, within).await),
            };
            remover.take_out(&leaving).await;
            Removed {
                acknowledged,
                in_flight,
            }
        });
        Some(done.await.unwrap_or_default())
    }

    /// For a process that is stopping: the instance leaves as well, and its other callers learn that from the next
    /// process. Reports the calls that it still has here, until there are none.
    pub async fn leave_draining(
        &self,
        registration: &str,
        every: Duration,
        report: impl Fn(usize) + Send,
    ) {
        let Some(leaving) = self.agent.drain(registration, None, MAX_FINISH) else {
            return;
        };
        let endpoint = self.calls.endpoint(&leaving.key);
        self.until_applied(leaving.version).await;
        let Some(endpoint) = endpoint else { return };
        loop {
            match self.calls.ended(endpoint, every).await {
                0 => return,
                left => report(left),
            }
        }
    }

    /// Removes the instances that a file no longer names, in the background. One query to the control plane serves for
    /// all, as they belong to one service.
    pub fn of_file(&self, leaving: Vec<Leaving>) {
        if leaving.is_empty() {
            return;
        }
        let remover = self.clone();
        tokio::spawn(async move {
            let answer = remover.await_acknowledged(&leaving, MAX_WAIT).await;
            remover.take_out(&leaving).await;
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

    /// Waits until every client knows that these instances, which drain, get no more calls.
    async fn await_acknowledged(&self, leaving: &[Leaving], max_wait: Duration) -> Acknowledged {
        let Some(last) = leaving.iter().max_by_key(|one| one.version) else {
            return Acknowledged::default();
        };
        self.until_applied(last.version).await;
        self.session
            .removal(&last.key, last.version, max_wait)
            .await
    }

    async fn take_out(&self, leaving: &[Leaving]) {
        let mut version = 0;
        for one in leaving {
            if let Some((_, out)) = self.agent.deregister(&one.registration) {
                version = out;
            }
        }
        self.until_applied(version).await;
    }

    async fn until_applied(&self, version: u64) {
        let mut applied = self.applied.clone();
        let _ = tokio::time::timeout(APPLIED_TIMEOUT, applied.wait_for(|v| *v >= version)).await;
    }
}
