//! Saves registered instances in the state dir, so that a proxy starts with those of its last run. Health check plans
//! are not saved but derived again on load. Instances of services files are not saved: the files are still there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_proto::control::v1::LocalInstance;
use heddle_proto::registry::v1::{Health, health_check::Kind};
use prost::Message;
use tracing::{info, warn};

use super::{
    Agent,
    check_plan::CheckPlan,
    instance_table::View,
    schema::Schema,
    validate::{Origin, check},
};
use crate::state_dir::{StateDir, StateWriter};

const FILE: &str = "instances";
/// Bound on the descriptors that are saved with the instances. Those over it are requested again after a restart.
const MAX_SCHEMA_TOTAL: usize = 64 * 1024 * 1024;
/// The least time between two writes. The first change is written at once, so that a kill loses no registration;
/// changes within this time go into one more write. Each write saves the whole set and syncs the disk.
const REST: Duration = Duration::from_millis(200);

#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(message, repeated, tag = "2")]
    instances: Vec<SavedInstance>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    schemas: Vec<Bytes>,
    /// The services and the paths they claimed, the oldest claim first.
    #[prost(message, repeated, tag = "4")]
    claims: Vec<SavedClaim>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedClaim {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    proto: String,
}

/// The instances and claims of this node's last process.
#[derive(Default)]
pub struct Restored {
    pub instances: Vec<(View, CheckPlan)>,
    /// Service and proto service, the oldest claim first.
    pub claims: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedInstance {
    #[prost(message, optional, tag = "1")]
    local: Option<LocalInstance>,
    #[prost(string, tag = "2")]
    registration: String,
}

/// Loads what this node's last process saved. Whether an address belongs to this host was checked when the instance
/// registered, and is not checked again.
#[must_use]
pub fn load(dir: &StateDir, node: &str) -> Restored {
    dir.read(FILE)
        .map(|bytes| parse(dir, bytes, node))
        .unwrap_or_default()
}

/// Content of another node, or content that cannot be decoded, is set aside.
pub(super) fn parse(dir: &StateDir, bytes: Bytes, node: &str) -> Restored {
    let saved = match Saved::decode(bytes) {
        Ok(saved) if saved.node == node => saved,
        Ok(saved) => {
            dir.set_aside(
                FILE,
                &format!(
                    "it belongs to node \"{}\", and this is node \"{node}\"",
                    saved.node
                ),
            );
            return Restored::default();
        }
        Err(error) => {
            dir.set_aside(FILE, &error.to_string());
            return Restored::default();
        }
    };
    let schemas: Vec<_> = saved
        .schemas
        .into_iter()
        .filter_map(|bytes| Schema::parse(bytes).ok())
        .collect();
    let restored: Vec<_> = saved
        .instances
        .into_iter()
        .filter_map(|one| restore(one, &schemas))
        .collect();
    if !restored.is_empty() {
        info!(
            "from the last run, in use until they register again or the TTL ends: {}",
            heddle_proto::count(restored.len(), "instance")
        );
    }
    let claims = saved.claims.into_iter().map(|it| (it.service, it.proto));
    Restored {
        instances: restored,
        claims: claims.collect(),
    }
}

fn restore(saved: SavedInstance, schemas: &[Schema]) -> Option<(View, CheckPlan)> {
    let local = saved.local?;
    let checked = check(
        local.instance?,
        &Bytes::new(),
        Origin::Registration,
        &|_| true,
    )
    .ok()?;
    let health = Health::try_from(local.health).unwrap_or(Health::Unhealthy);
    let used = Kind::try_from(local.checked_by).unwrap_or_default();
    let view = View {
        instance: checked.instance,
        address: checked.address,
        health,
        reason: local.health_reason,
        checked_by: checked.check.checked_by(used),
        protos: local.protos,
        schema: schemas
            .iter()
            .find(|s| s.sha256 == local.schema_sha256)
            .cloned(),
        schema_reason: local.schema_reason,
        registration: saved.registration.into(),
    };
    Some((view, checked.check))
}

/// Writes after every change, until the process ends.
pub async fn keep(dir: StateDir, agent: Agent) {
    let loss = "after a restart instances are known once they register again";
    let mut keeper = StateWriter::new(dir, FILE, REST, loss);
    let mut changes = agent.changes();
    let mut written: Vec<Arc<View>> = Vec::new();
    let mut written_claims = Vec::new();
    loop {
        changes.borrow_and_update();
        let (now, claims) = (agent.registered(), agent.claims().in_order());
        let same = claims == written_claims
            && now.len() == written.len()
            && now.iter().zip(&written).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            let node = agent.node().to_owned();
            let (views, order) = (now.clone(), claims.clone());
            if !keeper.write(move || encode(&node, &views, order)).await {
                continue;
            }
            (written, written_claims) = (now, claims);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the registered instances now.
pub async fn save(dir: &StateDir, agent: &Agent) {
    let (node, views) = (agent.node().to_owned(), agent.registered());
    let claims = agent.claims().in_order();
    let written = dir.write_off_thread(FILE, move || encode(&node, &views, claims));
    if let Err(error) = written.await {
        warn!("cannot write to the state dir: {error}");
    }
}

fn encode(node: &str, views: &[Arc<View>], claims: Vec<(String, String)>) -> Vec<u8> {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut schemas = Vec::new();
    for schema in views.iter().filter_map(|v| v.schema.as_ref()) {
        if seen.insert(schema.sha256.as_str()) && total + schema.bytes.len() <= MAX_SCHEMA_TOTAL {
            total += schema.bytes.len();
            schemas.push(schema.bytes.clone());
        }
    }
    let instances = views
        .iter()
        .map(|v| SavedInstance {
            local: Some(v.to_local()),
            registration: v.registration.to_string(),
        })
        .collect();
    Saved {
        node: node.to_owned(),
        instances,
        schemas,
        claims: claims
            .into_iter()
            .map(|(service, proto)| SavedClaim { service, proto })
            .collect(),
    }
    .encode_to_vec()
}
