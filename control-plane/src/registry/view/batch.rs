//! What one or several revisions changed in the view, by name. Batches merge, and their size is bounded by the names in the
//! mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    changed_instances::{ChangedInstances, InstanceId},
    claims::PathOf,
};
use crate::{names::ServiceName, store::Revision};

/// What one or several revisions changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The view's revision after them.
    pub revision: Revision,
    /// Services whose content changed: an instance, what matters to clients of the node of one, or what stands in
    /// where there is none.
    pub services: BTreeSet<ServiceName>,
    /// Which instances of them; a service that is absent here changed in nothing but its record.
    pub instances: BTreeMap<ServiceName, ChangedInstances>,
    /// Nodes that changed, lease included.
    pub nodes: BTreeSet<Arc<str>>,
    /// Replicas of the control plane, or their duties.
    pub replicas: bool,
    /// Something happened that `View::events` tells.
    pub events: bool,
    /// Where proxies listen.
    pub listeners: bool,
    /// Claims of paths that came or went, or whose service has instances now and had none, or the reverse.
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
