//! The expected state, read from the state of the simulated nodes, and the stored state, read from the raw keys of the
//! store. This module must not use the product's view.

use std::collections::{BTreeMap, BTreeSet};

use heddle_proto::store::v1::{InstanceRecord, NodeRecord};
use prost::Message as _;

use crate::{
    sim::simulation::{Simulation, Who, lock},
    store::Revision,
};

/// The content of the store, read without the product's view.
#[derive(Clone, Default)]
pub(super) struct Stored {
    pub(super) revision: Revision,
    /// By address: where the instance is, and its health as clients see it.
    pub(super) instances: BTreeMap<String, (String, String, i32)>,
    pub(super) services: BTreeSet<String>,
    pub(super) suspects: BTreeSet<String>,
}

/// Addresses of the living instances: their node, and their health in xDS.
pub(super) fn wanted(simulation: &Simulation) -> BTreeMap<String, (usize, i32)> {
    let nodes = lock(&simulation.nodes);
    let mut wanted = BTreeMap::new();
    for (who, node) in rightful(simulation) {
        for local in nodes
            .get(&who)
            .into_iter()
            .flat_map(|book| book.instances.values())
        {
            if let Some(instance) = &local.instance {
                wanted.insert(
                    instance.address.clone(),
                    (node, in_xds(local.health, false)),
                );
            }
        }
    }
    wanted
}

/// The value of `envoy.config.core.v3.HealthStatus`, without the product's code.
fn in_xds(health: i32, suspect: bool) -> i32 {
    use heddle_proto::registry::v1::Health;
    match Health::try_from(health) {
        Ok(Health::Healthy) if !suspect => 1,
        Ok(Health::Unhealthy) => 2,
        Ok(Health::Draining) => 3,
        _ => 0,
    }
}

pub(super) fn rightful(simulation: &Simulation) -> impl Iterator<Item = (Who, usize)> + use<> {
    let rightful = lock(&simulation.rightful).clone();
    rightful
        .into_iter()
        .map(|(node, process)| (Who::Node(node, process), node))
}

pub(super) fn is_running(simulation: &Simulation, who: Who) -> bool {
    let lives = lock(&simulation.nodes).contains_key(&who);
    lives && simulation.net(|net| !net.paused.contains(&who))
}

/// Whether an older process of the node is alive as well.
pub(in crate::sim) fn is_contested(simulation: &Simulation, node: usize) -> bool {
    let nodes = lock(&simulation.nodes);
    nodes
        .keys()
        .filter(|who| matches!(who, Who::Node(n, _) if *n == node))
        .count()
        > 1
}

pub(super) fn address_of(value: &[u8]) -> Option<String> {
    let record = InstanceRecord::decode(value).ok()?;
    Some(record.local?.instance?.address)
}

/// Reads the store's raw keys, once per revision.
pub(super) fn read(simulation: &Simulation) -> Stored {
    let cluster = lock(&simulation.store);
    let revision = cluster.machine.history().published();
    if let Some(read) = &lock(&simulation.invariants).read
        && read.revision == revision
    {
        return read.clone();
    }
    let range = |prefix| {
        cluster
            .machine
            .range(prefix, None, false)
            .map(|it| it.items)
            .unwrap_or_default()
    };
    let mut stored = Stored {
        revision,
        ..Stored::default()
    };
    for item in range("node/") {
        if NodeRecord::decode(item.value).is_ok_and(|record| record.suspect) {
            stored
                .suspects
                .insert(item.key.trim_start_matches("node/").to_owned());
        }
    }
    for item in range("service/") {
        stored
            .services
            .insert(item.key.trim_start_matches("service/").to_owned());
    }
    for item in range("instance/") {
        let parts: Vec<&str> = item.key.split('/').collect();
        let [_, node, service, _] = parts.as_slice() else {
            continue;
        };
        let Ok(InstanceRecord {
            local: Some(local), ..
        }) = InstanceRecord::decode(item.value)
        else {
            continue;
        };
        let health = in_xds(local.health, stored.suspects.contains(*node));
        let address = local
            .instance
            .map(|instance| instance.address)
            .unwrap_or_default();
        let place = ((*node).to_owned(), (*service).to_owned(), health);
        stored.instances.insert(address, place);
        stored.services.insert((*service).to_owned());
    }
    lock(&simulation.invariants).read = Some(stored.clone());
    stored
}
