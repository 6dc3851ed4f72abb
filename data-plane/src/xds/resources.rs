//! The resources that this proxy has, by type, and how a response changes them. Input: responses. Output: what changed
//! and what is rejected. Pure: no stream, no clock. Good resources of a response are applied even if others are bad.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::bytes::Bytes;

use super::{ASSIGNMENT, CLUSTER, Cluster, INDEX, View, demand::Demand, translate};
use translate::{Assignment, Fault, Index};

/// One resource.
#[derive(Clone, Debug)]
pub struct Resource<T> {
    pub version: String,
    /// The bytes as received, for the state dir.
    pub raw: Bytes,
    pub value: T,
}

/// All resources, by name.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Of services in demand.
    pub clusters: BTreeMap<String, Resource<()>>,
    /// Of services in demand.
    pub assignments: BTreeMap<String, Resource<Arc<Assignment>>>,
    /// Of every service of the mesh.
    pub indexes: BTreeMap<String, Resource<Arc<Index>>>,
    /// The control plane has named every service at least once.
    all_named: bool,
    /// Services in demand for which the control plane has no cluster.
    no_cluster: BTreeSet<String>,
    /// Services in demand for which the control plane has no assignment.
    no_assignment: BTreeSet<String>,
    /// Every service has been named and all prefetched endpoints have arrived, in this run or in the one that wrote the
    /// state dir.
    complete: bool,
}

/// The result of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub changed: bool,
    /// `name: field: why`, one per rejected resource.
    pub faults: Vec<String>,
}

/// The suffix of `system_version_info` if more parts of a first answer follow.
const MORE: char = '+';

impl Resources {
    /// Applies a response of one of the three types. Resources that are no longer in demand are ignored. `demand`
    /// learns which services are new and which are gone.
    pub fn apply(
        &mut self,
        response: &DeltaDiscoveryResponse,
        demand: &mut Demand,
        now: Instant,
    ) -> Applied {
        let mut applied = Applied::default();
        match response.type_url.as_str() {
            CLUSTER => self.take_clusters(response, demand, &mut applied),
            ASSIGNMENT => self.take_assignments(response, demand, &mut applied),
            INDEX => {
                let arc = |name: &str, raw: &Bytes| translate::index(name, raw).map(Arc::new);
                take(&mut self.indexes, response, |_| true, arc, &mut applied);
                for name in &response.removed_resources {
                    applied.changed |= self.indexes.remove(name).is_some();
                }
                self.all_named |= !response.system_version_info.ends_with(MORE);
                let gone = demand.follow(self.indexes.keys(), now);
                self.leave(&gone);
            }
            other => applied.faults.push(format!("{other}: was not requested")),
        }
        let named = response.resources.iter().map(|r| &r.name);
        for name in named.chain(&response.removed_resources) {
            if demand.wants(name) && self.endpoints_of(name).is_some() {
                demand.answered(name);
            }
        }
        applied.changed |= self.look_complete(demand);
        applied
    }

    fn take_clusters(
        &mut self,
        response: &DeltaDiscoveryResponse,
        demand: &Demand,
        applied: &mut Applied,
    ) {
        let wanted = |name: &str| demand.wants(name);
        take(
            &mut self.clusters,
            response,
            wanted,
            translate::cluster,
            applied,
        );
        for resource in &response.resources {
            if self.clusters.contains_key(&resource.name) {
                self.no_cluster.remove(&resource.name);
            }
        }
        for name in removed(response, demand) {
            self.clusters.remove(name);
            self.assignments.remove(name);
            self.no_assignment.remove(name);
            applied.changed |= self.no_cluster.insert(name.clone());
        }
    }

    fn take_assignments(
        &mut self,
        response: &DeltaDiscoveryResponse,
        demand: &Demand,
        applied: &mut Applied,
    ) {
        let wanted = |name: &str| demand.wants(name);
        let arc = |name: &str, raw: &Bytes| translate::assignment(name, raw).map(Arc::new);
        take(&mut self.assignments, response, wanted, arc, applied);
        for resource in &response.resources {
            if self.assignments.contains_key(&resource.name) {
                self.no_assignment.remove(&resource.name);
            }
        }
        // An assignment that is removed while its cluster exists is kept (xDS). One that never came is recorded as
        // missing.
        for name in removed(response, demand) {
            if !self.assignments.contains_key(name) {
                applied.changed |= self.no_assignment.insert(name.clone());
            }
        }
    }

    /// Returns true if the state has just become complete.
    fn look_complete(&mut self, demand: &Demand) -> bool {
        let mut prefetched = demand.prefetched();
        let complete = self.all_named && prefetched.all(|name| self.endpoints_of(name).is_some());
        let became = complete && !self.complete;
        self.complete |= complete;
        became
    }

    /// Drops the resources of services that are no longer in demand.
    pub fn leave(&mut self, services: &[String]) {
        for name in services {
            self.clusters.remove(name);
            self.assignments.remove(name);
            self.no_cluster.remove(name);
            self.no_assignment.remove(name);
        }
    }

    /// Restores a resource of the state dir.
    ///
    /// # Errors
    /// It cannot be read; it is left out until the control plane sends it.
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
                    Resource {
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
                    Resource {
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
                    Resource {
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

    /// The restored resources count as complete.
    pub fn set_restored(&mut self) {
        self.complete = true;
    }

    /// The versions of a type, for `initial_resource_versions`.
    #[must_use]
    pub fn versions(&self, type_url: &str) -> HashMap<String, String> {
        fn of<T>(held: &BTreeMap<String, Resource<T>>) -> HashMap<String, String> {
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

    /// Whether every service has been named once and all prefetched endpoints have arrived; never becomes false again.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// The number of services whose endpoints are known, including those without any.
    #[must_use]
    pub fn held(&self) -> usize {
        let known = self.clusters.keys().chain(&self.no_cluster);
        known
            .filter(|name| self.endpoints_of(name).is_some())
            .count()
    }

    /// The endpoints of a service; `None` until the control plane has answered.
    fn endpoints_of(&self, name: &str) -> Option<Arc<Assignment>> {
        if self.no_cluster.contains(name) {
            return Some(Arc::default());
        }
        self.clusters.get(name)?;
        match self.assignments.get(name) {
            Some(held) => Some(Arc::clone(&held.value)),
            None => self.no_assignment.contains(name).then(Arc::default),
        }
    }

    /// Every service with a name, and those whose endpoints arrived before their name.
    #[must_use]
    pub fn view(&self) -> View {
        let named = self.indexes.iter().map(|(name, held)| {
            let cluster = Cluster {
                assignment: self.endpoints_of(name),
                index: Some(Arc::clone(&held.value)),
            };
            (name.clone(), cluster)
        });
        let mut clusters: BTreeMap<String, Cluster> = named.collect();
        for name in self
            .clusters
            .keys()
            .filter(|name| !self.indexes.contains_key(*name))
        {
            let assignment = self.endpoints_of(name);
            if assignment.is_some() {
                let index = None;
                clusters.insert(name.clone(), Cluster { assignment, index });
            }
        }
        View {
            clusters,
            complete: self.complete(),
        }
    }
}

/// The services in demand that the control plane reports as removed or missing.
fn removed<'r>(
    response: &'r DeltaDiscoveryResponse,
    demand: &'r Demand,
) -> impl Iterator<Item = &'r String> {
    let names = response.removed_resources.iter();
    names.filter(move |name| demand.wants(name))
}

fn take<T>(
    held: &mut BTreeMap<String, Resource<T>>,
    response: &DeltaDiscoveryResponse,
    wanted: impl Fn(&str) -> bool,
    translate: impl Fn(&str, &Bytes) -> Result<T, Fault>,
    applied: &mut Applied,
) {
    for resource in response.resources.iter().filter(|r| wanted(&r.name)) {
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
                    Resource {
                        version: resource.version.clone(),
                        raw,
                        value,
                    },
                );
            }
            Err(fault) => applied.faults.push(format!("{name}: {fault}")),
        }
    }
}
