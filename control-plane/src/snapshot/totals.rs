//! Totals over the instances of one service: the proto services that it serves, their idempotent methods, and its
//! descriptors. Adding or removing an instance costs as much as that instance declares.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_proto::{control::v1::ProtoService, registry::v1::Health};

use crate::registry::Instance;

#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    protos: BTreeMap<String, ProtoCount>,
    /// Descriptors by their hash: the number of ready instances and of all instances that have them.
    schemas: BTreeMap<Arc<str>, (usize, usize)>,
}

/// How many instances serve a proto service, and how many of them declare each method idempotent.
#[derive(Clone, Debug, Default)]
struct ProtoCount {
    times: usize,
    methods: BTreeMap<String, usize>,
}

impl Totals {
    pub(super) fn add(&mut self, instance: &Instance) {
        for proto in &instance.protos {
            let count = match self.protos.get_mut(&proto.name) {
                Some(count) => count,
                None => self.protos.entry(proto.name.clone()).or_default(),
            };
            count.times += 1;
            for method in distinct(proto) {
                *count.methods.entry(method.to_owned()).or_default() += 1;
            }
        }
        if let Some(sha256) = &instance.schema_sha256 {
            let (ready, all) = self.schemas.entry(Arc::clone(sha256)).or_default();
            *ready += usize::from(instance.health == Health::Healthy);
            *all += 1;
        }
    }

    pub(super) fn remove(&mut self, instance: &Instance) {
        for proto in &instance.protos {
            let Some(count) = self.protos.get_mut(&proto.name) else {
                continue;
            };
            count.times = count.times.saturating_sub(1);
            if count.times == 0 {
                self.protos.remove(&proto.name);
                continue;
            }
            for method in distinct(proto) {
                if let Some(times) = count.methods.get_mut(method) {
                    *times -= 1;
                    if *times == 0 {
                        count.methods.remove(method);
                    }
                }
            }
        }
        let sha256 = instance.schema_sha256.as_ref();
        if let Some(sha256) = sha256
            && let Some((ready, all)) = self.schemas.get_mut(sha256)
        {
            *ready -= usize::from(instance.health == Health::Healthy);
            *all -= 1;
            if *all == 0 {
                self.schemas.remove(sha256);
            }
        }
    }

    /// The union of what the instances serve, sorted by name. A method counts as idempotent only if every instance that
    /// serves the proto service declares it so: a retry may reach any of them.
    pub(super) fn protos(&self) -> Vec<ProtoService> {
        let proto = |(name, count): (&String, &ProtoCount)| {
            let agreed = count
                .methods
                .iter()
                .filter(|(_, times)| **times == count.times);
            ProtoService {
                name: name.clone(),
                idempotent_methods: agreed.map(|(method, _)| method.clone()).collect(),
            }
        };
        self.protos.iter().map(proto).collect()
    }

    /// The descriptors of most ready instances; in a tie those of most instances, then the first by hash.
    pub(super) fn schema(&self) -> Option<&Arc<str>> {
        let mut best: Option<(&Arc<str>, &(usize, usize))> = None;
        for (sha256, count) in &self.schemas {
            if best.is_none_or(|(_, most)| count > most) {
                best = Some((sha256, count));
            }
        }
        best.map(|(sha256, _)| sha256)
    }
}

fn distinct(proto: &ProtoService) -> BTreeSet<&str> {
    let methods = proto.idempotent_methods.iter();
    methods.map(String::as_str).collect()
}
