//! What the control plane says about this node's instances, and the bounded wait for it: an address that only the control
//! plane knows to be wrong (a listener of another proxy) is refused in the answer to `Register`, and such an instance is
//! not asked what it serves. Input, from the session: judgements, and whether a session is open. Without an open session
//! nobody waits.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};
use tracing::{error, info};

use super::{
    Agent,
    instance_table::{Judgement, Refusal},
    key::InstanceKey,
};

/// The longest wait for the control plane's judgement; usually it takes one write to its store.
const JUDGED_WITHIN: Duration = Duration::from_secs(1);

/// Wakes those who wait for a judgement.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Whether a session is open; each judgement is announced too.
    session_open: watch::Sender<bool>,
}

impl Agent {
    /// The session with the control plane was opened or has ended.
    pub(super) fn session_open(&self, open: bool) {
        self.inner.judge.session_open.send_replace(open);
    }

    /// The control plane rejects this registration or accepts it.
    pub(super) fn set_refused(
        &self,
        key: &InstanceKey,
        registration: &str,
        refusal: Option<&Refusal>,
    ) {
        if self.edit(|table| table.set_refused(key, registration, refusal)) {
            match refusal {
                Some(reason) => error!(
                    instance = %key, %reason,
                    "the control plane refuses this instance: it gets no calls until it is registered with valid data"
                ),
                None => info!(instance = %key, "the control plane takes this instance now"),
            }
        }
        self.inner.judge.session_open.send_modify(|_| {});
    }

    /// Waits until the control plane has judged the registration, as long as a session is open and at most
    /// [`JUDGED_WITHIN`]. Returns a refusal.
    pub(super) async fn refusal(&self, registration: &str) -> Option<Refusal> {
        let mut judgements = self.inner.judge.session_open.subscribe();
        let judged = async {
            loop {
                let open = *judgements.borrow_and_update();
                match self.table().judgement(registration) {
                    Some(Judgement::Refused(refusal)) => return Some(refusal.clone()),
                    Some(Judgement::Pending) if open => {}
                    Some(Judgement::Pending | Judgement::Accepted) | None => return None,
                }
                judgements.changed().await.ok()?;
            }
        };
        timeout(JUDGED_WITHIN, judged).await.unwrap_or(None)
    }

    /// Waits as long as the control plane refuses the registration.
    pub(super) async fn not_refused(&self, registration: &str) {
        let mut judgements = self.inner.judge.session_open.subscribe();
        while self.refusal(registration).await.is_some() {
            if judgements.changed().await.is_err() {
                return;
            }
        }
    }
}
