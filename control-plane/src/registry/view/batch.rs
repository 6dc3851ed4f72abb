//! The changes of one or several revisions in the view, by name. Batches can be merged, and their size is bounded by
//! the names in the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    changed_instances::{ChangedInstances, InstanceId},
    claims::PathOf,
};
use crate::{names::ServiceName, store::Revision};

/// The changes of one or several revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The view's revision after them.
    pub revision: Revision,
    /// Services whose content changed: an instance, a field of an instance's node that clients see, the record that
    /// replaces missing information of instances, or the age of a claim.
    pub services: BTreeSet<ServiceName>,
    /// Their changed instances. If a service is missing here, only its record or a claim changed.
    pub instances: BTreeMap<ServiceName, ChangedInstances>,
    /// Nodes that changed, including their leases.
    pub nodes: BTreeSet<Arc<str>>,
    /// Whether replicas of the control plane or their duties changed.
    pub replicas: bool,
    /// Whether `View::events` changed.
    pub events: bool,
    /// Whether the addresses of proxies' listeners changed.
    pub listeners: bool,
    /// Claims of paths that were added or removed, or whose service got its first or lost its last instance.
    pub paths: BTreeSet<PathOf>,
}

impl Batch {
    /// Adds a later batch.
    pub fn merge(&mut self, later: Self) {
        self.revision = self.revision.max(later.revision);
        self.services.extend(later.services);
        for (service, changed) in later.instances {
            self.instances.entry(service).or_default().merge(changed);
        }
        self.nodes.extend(later.nodes);
        self.replicas |= later.replicas;
        self.events |= later.events;
        self.listeners |= later.listeners;
        self.paths.extend(later.paths);
    }

    pub(super) fn mark_changed(&mut self, service: &ServiceName, id: InstanceId) {
        self.services.insert(service.clone());
        let changed = self.instances.entry(service.clone()).or_default();
        changed.insert(id);
    }

    pub(super) fn mark_all_changed(&mut self, service: &ServiceName) {
        self.services.insert(service.clone());
        self.instances
            .insert(service.clone(), ChangedInstances::All);
    }
}
