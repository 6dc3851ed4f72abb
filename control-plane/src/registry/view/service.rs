//! One service in the view: its instances, the paths that they claim, and its record.

use std::{collections::BTreeMap, sync::Arc};

use super::{changed_instances::InstanceId, claims::Claimed};
use crate::{
    registry::model::{Instance, KnownService},
    store::Revision,
};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Service {
    pub(super) instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// Proto service → the number of instances that serve it.
    pub(super) protos: BTreeMap<Arc<str>, usize>,
    /// Proto service → the number of instances that claim its path.
    pub(super) claimed: BTreeMap<Arc<str>, usize>,
    /// The number of instances that claim the paths of their proto services.
    pub(super) claiming: usize,
    pub(super) record: Option<Record>,
}

/// The service's record in the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) known: Arc<KnownService>,
    pub(super) created: Revision,
    pub(super) modified: Revision,
}

impl Service {
    /// The ids of the service's instances on a node.
    pub(super) fn ids_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a InstanceId> {
        let first: InstanceId = (node.into(), "".into());
        let ids = self.instances.range(first..).map(|(id, _)| id);
        ids.take_while(move |(on, _)| **on == *node)
    }

    pub(super) fn stands_in(&self) -> Option<&Arc<KnownService>> {
        let record = self.record.as_ref()?;
        self.protos.is_empty().then_some(&record.known)
    }

    /// Whether one of its instances serves this proto service, as far as is known, and claims its path.
    pub(super) fn serves_path(&self, proto: &str) -> bool {
        let is_known = |known: &Arc<KnownService>| {
            let claims = known.claim_paths && self.claiming > 0;
            claims && known.protos.iter().any(|it| it.name == proto)
        };
        self.claimed.contains_key(proto) || self.stands_in().is_some_and(is_known)
    }

    pub(super) fn claim(&self) -> Claimed {
        let wanted = self.instances.is_empty() || self.claiming > 0;
        let protos = match self.stands_in() {
            Some(known) if known.claim_paths && wanted => known
                .protos
                .iter()
                .map(|proto| proto.name.as_str().into())
                .collect(),
            Some(_) => Vec::new(),
            None => self.claimed.keys().cloned().collect(),
        };
        Claimed {
            empty: self.instances.is_empty(),
            protos,
        }
    }

    /// The instances on one node, sorted by id. The cost does not depend on the instances of other nodes.
    pub(super) fn instances_of<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        let first = (Arc::from(node), Arc::from(""));
        let from = self.instances.range(first..);
        let of_node = from.take_while(move |((on, _), _)| **on == *node);
        of_node.map(|(_, instance)| instance)
    }

    /// Whether it has neither an instance nor a record.
    pub(super) fn is_gone(&self) -> bool {
        self.instances.is_empty() && self.record.is_none()
    }
}
