//! What reflection reports about an instance goes into the instance table, and what is new goes to the log: a new reason why
//! something is missing, and new descriptors. Asking the instance is `reflect`'s.

use tracing::{debug, info};

use super::{
    Agent,
    instance_table::{InstanceTable, Joined},
    lock,
    reflect::{ReflectError, Told},
};

impl Agent {
    pub(super) fn listed(&self, joined: &Joined, names: &[String]) {
        self.learn(joined, |table| {
            table.listed(&joined.key, &joined.registration, names)
        });
    }

    pub(super) fn told(&self, joined: &Joined, told: Told) {
        self.learn(joined, |table| {
            table.told(&joined.key, &joined.registration, told)
        });
    }

    pub(super) fn not_told(&self, joined: &Joined, why: ReflectError) {
        if let ReflectError::Status(status) = &why {
            debug!(instance = %joined.key, "its reflection says: {}", status.message());
        }
        let starting = !why.is_answer();
        let reason = self.reason_after(joined, |table| {
            table.not_told(&joined.key, &joined.registration, why)
        });
        match reason {
            // It may only be starting, and its health says so.
            Some(reason) if starting => debug!(instance = %joined.key, "{reason}"),
            Some(reason) => info!(instance = %joined.key, "{reason}"),
            None => {}
        }
    }

    /// Tells a new reason in the log, and descriptors that are new.
    fn learn(&self, joined: &Joined, f: impl FnOnce(&mut InstanceTable) -> bool) {
        let hash = || {
            let view = self.view(&joined.key)?;
            view.schema.as_ref().map(|schema| schema.sha256.clone())
        };
        let before = hash();
        if let Some(reason) = self.reason_after(joined, f) {
            info!(instance = %joined.key, "{reason}");
        }
        if let Some(sha256) = hash().filter(|now| before.as_ref() != Some(now)) {
            info!(instance = %joined.key, %sha256, "descriptors by reflection");
        }
    }

    /// Changes what is known of an instance; why something is missing, if that is another reason than before.
    fn reason_after(
        &self,
        joined: &Joined,
        f: impl FnOnce(&mut InstanceTable) -> bool,
    ) -> Option<String> {
        let reason = |table: &InstanceTable| {
            table
                .view(&joined.key)
                .map(|view| view.schema_reason.clone())
                .unwrap_or_default()
        };
        self.edit(|table| {
            let before = reason(table);
            f(table);
            let now = reason(table);
            (now != before && !now.is_empty()).then_some(now)
        })
    }

    /// The instance may be another process than the one that was asked what it serves.
    pub(super) fn ask_again(&self, registration: &str) {
        if let Some(tasks) = lock(&self.inner.tasks).get(registration) {
            tasks.ask_again.notify_one();
        }
    }
}
