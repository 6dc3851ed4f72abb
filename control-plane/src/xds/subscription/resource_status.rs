//! The state of one resource of one client for CSDS: requested, sent, acknowledged, absent or rejected. Pure.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    snapshot::{Kind, Resource},
    xds::Subscription,
};

/// What one client did with a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::xds) enum State {
    /// Requested, and nothing was sent yet.
    Requested,
    /// Sent, and not answered yet.
    Sent,
    /// It was reported as absent.
    Absent,
    Acknowledged,
    /// The client rejected this version; it has the one before, if any.
    Rejected {
        version: String,
        reason: String,
    },
}

#[derive(Clone, Debug)]
pub(in crate::xds) struct ResourceStatus {
    pub(in crate::xds) kind: Kind,
    pub(in crate::xds) name: Arc<str>,
    /// The version that the client accepted or was sent last; empty if none.
    pub(in crate::xds) version: Arc<str>,
    /// The resource of that version, while it is kept.
    pub(in crate::xds) resource: Option<Arc<Resource>>,
    pub(in crate::xds) state: State,
}

impl Subscription {
    /// Everything of this type that the client requests or has, sorted by name.
    pub(in crate::xds) fn resource_statuses(&self) -> Vec<ResourceStatus> {
        if !self.has_requested {
            return Vec::new();
        }
        let names: BTreeSet<&Arc<str>> = self
            .names
            .iter()
            .chain(self.sent_states.keys())
            .chain(self.refused.keys())
            .collect();
        names
            .into_iter()
            .map(|name| self.resource_status(name))
            .collect()
    }

    fn resource_status(&self, name: &Arc<str>) -> ResourceStatus {
        let held = self.sent_states.get(name);
        let state = if let Some(refused) = self.refused.get(name) {
            State::Rejected {
                version: refused.version.as_deref().unwrap_or_default().to_owned(),
                reason: refused.reason.to_string(),
            }
        } else if self.absent.contains(name) {
            State::Absent
        } else if self.is_under_way(name) || self.is_probed(name) {
            State::Sent
        } else if held.is_some() {
            State::Acknowledged
        } else {
            State::Requested
        };
        ResourceStatus {
            kind: self.kind,
            name: Arc::clone(name),
            version: held.map_or_else(|| "".into(), |held| Arc::clone(&held.version)),
            resource: held.and_then(|held| held.resource.clone()),
            state,
        }
    }
}
