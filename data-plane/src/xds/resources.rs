//! What this proxy holds of each type, and what a response does to it. Responses come in; what changed and what is
//! rejected go out. Pure: no stream, no clock. Good resources of a response are taken even if others are bad.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::bytes::Bytes;

use super::{ASSIGNMENT, CLUSTER, Cluster, INDEX, View, translate};
use translate::{Assignment, Fault, Index};

/// One resource as held.
#[derive(Clone, Debug)]
pub struct Held<T> {
    pub version: String,
    /// As it came: what the state dir keeps.
    pub raw: Bytes,
    pub value: T,
}

/// All resources held, by name.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    pub clusters: BTreeMap<String, Held<()>>,
    pub assignments: BTreeMap<String, Held<Arc<Assignment>>>,
    pub indexes: BTreeMap<String, Held<Arc<Index>>>,
    /// Wildcard types answered at least once.
    answered: BTreeSet<&'static str>,
    /// Clusters of which the control plane said that it has no assignment.
    without: BTreeSet<String>,
    /// All that was asked for had been answered once, in this run or in the one that wrote the state dir.
    complete: bool,
}

/// What a response did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub changed: bool,
    /// `name: field: why`, one per rejected resource.
    pub faults: Vec<String>,
}

impl Resources {
    /// Takes a response of one of the three types.
    pub fn apply(&mut self, response: &DeltaDiscoveryResponse) -> Applied {
        let mut applied = Applied::default();
        match response.type_url.as_str() {
            CLUSTER => {
                take(
                    &mut self.clusters,
                    response,
                    translate::cluster,
                    &mut applied,
                );
                let clusters = &self.clusters;
                self.assignments
                    .retain(|name, _| clusters.contains_key(name));
                self.without.retain(|name| clusters.contains_key(name));
                applied.changed |= self.answered.insert(CLUSTER);
            }
            ASSIGNMENT => {
                let arc = |name: &str, raw: &Bytes| translate::assignment(name, raw).map(Arc::new);
                // An assignment that goes while its cluster stays: clients keep what they have (xDS), and one that
                // never came counts as answered.
                for name in &response.removed_resources {
                    if !self.assignments.contains_key(name) && self.clusters.contains_key(name) {
                        applied.changed |= self.without.insert(name.clone());
                    }
                }
                let kept = DeltaDiscoveryResponse {
                    removed_resources: Vec::new(),
                    ..response.clone()
                };
                take(&mut self.assignments, &kept, arc, &mut applied);
                for resource in &response.resources {
                    self.without.remove(&resource.name);
                }
            }
            INDEX => {
                let arc = |name: &str, raw: &Bytes| translate::index(name, raw).map(Arc::new);
                take(&mut self.indexes, response, arc, &mut applied);
                applied.changed |= self.answered.insert(INDEX);
            }
            other => applied.faults.push(format!("{other}: was not asked for")),
        }
        if !self.complete && self.all_answered() {
            self.complete = true;
            applied.changed = true;
        }
        applied
    }

    /// Puts back what the state dir has; what cannot be read is left out and comes again.
    pub fn restore(
        &mut self,
        type_url: &str,
        name: &str,
        version: &str,
        raw: Bytes,
    ) -> Result<(), Fault> {
        let version = version.to_owned();
        match type_url {
            CLUSTER => {
                translate::cluster(name, &raw)?;
                let value = ();
                self.clusters.insert(
                    name.to_owned(),
                    Held {
                        version,
                        raw,
                        value,
                    },
                );
            }
            ASSIGNMENT => {
                let value = Arc::new(translate::assignment(name, &raw)?);
                self.assignments.insert(
                    name.to_owned(),
                    Held {
                        version,
                        raw,
                        value,
                    },
                );
            }
            INDEX => {
                let value = Arc::new(translate::index(name, &raw)?);
                self.indexes.insert(
                    name.to_owned(),
                    Held {
                        version,
                        raw,
                        value,
                    },
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// What was restored is all there was.
    pub fn set_restored(&mut self) {
        self.complete = true;
    }

    /// What is held of a type, as `initial_resource_versions`.
    #[must_use]
    pub fn versions(&self, type_url: &str) -> HashMap<String, String> {
        fn of<T>(held: &BTreeMap<String, Held<T>>) -> HashMap<String, String> {
            held.iter()
                .map(|(name, held)| (name.clone(), held.version.clone()))
                .collect()
        }
        match type_url {
            CLUSTER => of(&self.clusters),
            ASSIGNMENT => of(&self.assignments),
            INDEX => of(&self.indexes),
            _ => HashMap::new(),
        }
    }

    /// Whether all that was asked for has been answered once; stays so.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.complete
    }

    fn all_answered(&self) -> bool {
        let wildcards = self.answered.contains(CLUSTER) && self.answered.contains(INDEX);
        let endpoints =
            |name: &String| self.assignments.contains_key(name) || self.without.contains(name);
        wildcards && self.clusters.keys().all(endpoints)
    }

    /// The services whose endpoints have come. A cluster waits for its endpoints, so that a new service is not
    /// there without instances for a moment.
    #[must_use]
    pub fn view(&self) -> View {
        let clusters = self.clusters.keys().filter_map(|name| {
            let assignment = match self.assignments.get(name) {
                Some(held) => Arc::clone(&held.value),
                None if self.without.contains(name) => Arc::default(),
                None => return None,
            };
            let index = self.indexes.get(name).map(|held| Arc::clone(&held.value));
            Some((name.clone(), Cluster { assignment, index }))
        });
        View {
            clusters: clusters.collect(),
            complete: self.complete(),
        }
    }
}

fn take<T>(
    held: &mut BTreeMap<String, Held<T>>,
    response: &DeltaDiscoveryResponse,
    translate: impl Fn(&str, &Bytes) -> Result<T, Fault>,
    applied: &mut Applied,
) {
    for resource in &response.resources {
        let name = &resource.name;
        let Some(any) = &resource.resource else {
            applied.faults.push(format!("{name}: resource: is missing"));
            continue;
        };
        if any.type_url != response.type_url {
            applied
                .faults
                .push(format!("{name}: resource: is a {}", any.type_url));
            continue;
        }
        let raw = Bytes::copy_from_slice(&any.value);
        match translate(name, &raw) {
            Ok(value) => {
                applied.changed |= held.get(name).is_none_or(|old| old.raw != raw);
                held.insert(
                    name.clone(),
                    Held {
                        version: resource.version.clone(),
                        raw,
                        value,
                    },
                );
            }
            Err(fault) => applied.faults.push(format!("{name}: {fault}")),
        }
    }
    for name in &response.removed_resources {
        applied.changed |= held.remove(name).is_some();
    }
}
