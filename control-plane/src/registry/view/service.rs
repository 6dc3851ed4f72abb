//! One service in the view: its instances, what they claim, and what is known of it without them. In come the view's
//! changes, out goes what the service claims now. It knows no other service and no node.

use std::{collections::BTreeMap, sync::Arc};

use super::{claims::Claim, touched::Place};
use crate::{
    registry::{Instance, KnownService},
    store::Revision,
};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Service {
    pub(super) instances: BTreeMap<Place, Arc<Instance>>,
    /// Proto service → how many instances claim it.
    pub(super) protos: BTreeMap<Arc<str>, usize>,
    /// Its record, and when that was written.
    pub(super) record: Option<(Arc<KnownService>, Revision)>,
}

impl Service {
    /// Where a node has instances of it.
    pub(super) fn places_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Place> {
        let first: Place = (node.into(), "".into());
        let places = self.instances.range(first..).map(|(place, _)| place);
        places.take_while(move |(on, _)| **on == *node)
    }

    pub(super) fn stands_in(&self) -> Option<&Arc<KnownService>> {
        let (known, _) = self.record.as_ref()?;
        self.protos.is_empty().then_some(known)
    }

    pub(super) fn claim(&self) -> Claim {
        let protos = match self.stands_in() {
            Some(known) => known
                .protos
                .iter()
                .map(|proto| proto.name.as_str().into())
                .collect(),
            None => self.protos.keys().cloned().collect(),
        };
        Claim {
            empty: self.instances.is_empty(),
            protos,
        }
    }

    /// Those of one node, sorted by id; as cheap in a service with many others.
    pub(super) fn instances_of<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        let first = (Arc::from(node), Arc::from(""));
        let from = self.instances.range(first..);
        let of_node = from.take_while(move |((on, _), _)| **on == *node);
        of_node.map(|(_, instance)| instance)
    }

    /// Nothing is left of it: neither an instance nor a record.
    pub(super) fn is_gone(&self) -> bool {
        self.instances.is_empty() && self.record.is_none()
    }
}
