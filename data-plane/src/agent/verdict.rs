//! The control plane's verdicts on this node's instances, and the bounded wait for them: an address that only the control
//! plane knows to be wrong (a listener of another proxy) is refused in the answer to `Register`, and the
//! reflection of such an instance is not queried. Input, from the session: verdicts, and whether a session is open. Without an open session
//! there is no wait.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};
use tracing::{error, info};

use super::{
    Agent,
    instance_table::{Refusal, Verdict},
    key::InstanceKey,
};

/// The longest wait for the control plane's verdict; usually it takes one write to its store.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(1);

/// Wakes those who wait for a verdict.
#[derive(Debug, Default)]
pub(super) struct VerdictWatch {
    /// Whether a session is open; each verdict is announced too.
    session_open: watch::Sender<bool>,
}

impl Agent {
    /// The session with the control plane was opened or has ended.
    pub(super) fn session_open(&self, open: bool) {
        self.inner.verdicts.session_open.send_replace(open);
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
        self.inner.verdicts.session_open.send_modify(|_| {});
    }

    /// Waits until the control plane has decided on the registration, as long as a session is open and at most
    /// [`VERDICT_TIMEOUT`]. Returns a refusal.
    pub(super) async fn refusal(&self, registration: &str) -> Option<Refusal> {
        let mut verdicts = self.inner.verdicts.session_open.subscribe();
        let decided = async {
            loop {
                let open = *verdicts.borrow_and_update();
                match self.table().verdict(registration) {
                    Some(Verdict::Refused(refusal)) => return Some(refusal.clone()),
                    Some(Verdict::Pending) if open => {}
                    Some(Verdict::Pending | Verdict::Accepted) | None => return None,
                }
                verdicts.changed().await.ok()?;
            }
        };
        timeout(VERDICT_TIMEOUT, decided).await.unwrap_or(None)
    }

    /// Waits as long as the control plane refuses the registration.
    pub(super) async fn not_refused(&self, registration: &str) {
        let mut verdicts = self.inner.verdicts.session_open.subscribe();
        while self.refusal(registration).await.is_some() {
            if verdicts.changed().await.is_err() {
                return;
            }
        }
    }
}
