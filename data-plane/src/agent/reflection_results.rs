//! Stores what reflection reports about an instance in the instance table, and logs what is new: new descriptors, and a
//! new reason why something is missing. `reflect` sends the queries.

use tracing::{debug, info};

use super::{
    Agent,
    instance_table::{InstanceTable, Joined},
    lock,
    reflect::{ReflectError, ReflectionReport},
};

impl Agent {
    pub(super) fn listed(&self, joined: &Joined, names: &[String]) {
        self.record(joined, |table| {
            table.listed(&joined.key, &joined.registration, names)
        });
    }

    pub(super) fn report(&self, joined: &Joined, report: ReflectionReport) {
        self.record(joined, |table| {
            table.report(&joined.key, &joined.registration, report)
        });
    }

    pub(super) fn report_failed(&self, joined: &Joined, why: ReflectError) {
        if let ReflectError::Status(status) = &why {
            debug!(instance = %joined.key, "its reflection answered: {}", status.message());
        }
        let starting = !why.is_answer();
        let reason = self.reason_after(joined, |table| {
            table.report_failed(&joined.key, &joined.registration, why)
        });
        match reason {
            // The instance may still be starting; its health shows that already.
            Some(reason) if starting => debug!(instance = %joined.key, "{reason}"),
            Some(reason) => info!(instance = %joined.key, "{reason}"),
            None => {}
        }
    }

    /// Logs a new reason and new descriptors.
    fn record(&self, joined: &Joined, f: impl FnOnce(&mut InstanceTable) -> bool) {
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

    /// Changes what is known of an instance. Returns the reason why something is missing, if it is a new one.
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

    /// Queries the reflection of the instance again: its process may have been replaced since.
    pub(super) fn reflect_again(&self, registration: &str) {
        if let Some(tasks) = lock(&self.inner.tasks).get(registration) {
            tasks.reflect_again.notify_one();
        }
    }
}
