//! The last good state on disk: the names of all services and the endpoints of those in use. A proxy that starts
//! without a control plane then serves at once what it served before. `state_dir` writes files safely.

use std::time::Duration;

use prost::{Message, bytes::Bytes};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{ASSIGNMENT, CLUSTER, INDEX, resources::Resources};
use crate::state_dir::{StateDir, StateWriter};

const FILE: &str = "xds";
/// The least time between two writes; changes within it go into one more write. Each write saves the whole state and
/// syncs the disk.
const WRITE_PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, PartialEq, Message)]
struct LastGood {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<OneResource>,
    #[prost(uint64, tag = "3")]
    revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OneResource {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(bytes = "bytes", tag = "4")]
    raw: Bytes,
}

/// The resources of this node's last run, and the newest revision it had seen.
#[must_use]
pub fn load(dir: &StateDir, node: &str) -> Option<(Resources, u64)> {
    let bytes = dir.read(FILE)?;
    let saved = match LastGood::decode(bytes) {
        Ok(saved) if saved.node == node => saved,
        Ok(saved) => {
            dir.set_aside(
                FILE,
                &format!(
                    "it belongs to node \"{}\", and this is node \"{node}\"",
                    saved.node
                ),
            );
            return None;
        }
        Err(error) => {
            dir.set_aside(FILE, &error.to_string());
            return None;
        }
    };
    let mut resources = Resources::default();
    for one in saved.resources {
        if let Err(fault) = resources.restore(&one.type_url, &one.name, &one.version, one.raw) {
            warn!(
                "the state dir's {} {}: {fault}; ignored until the control plane sends it",
                one.type_url, one.name
            );
        }
    }
    resources.set_restored();
    info!(
        services = resources.indexes.len(),
        in_use = resources.clusters.len(),
        revision = saved.revision,
        "loaded the last good state of the mesh from the state dir"
    );
    Some((resources, saved.revision))
}

/// What is saved.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub resources: Resources,
    pub revision: u64,
}

/// Writes each newer snapshot, until the process ends. Nothing is written before the first complete answer, because a part of the
/// mesh is no good state.
pub async fn keep(dir: StateDir, node: String, mut newest: watch::Receiver<Snapshot>) {
    let mut keeper = StateWriter::new(dir, FILE, WRITE_PAUSE, "a restart begins with older state");
    let mut done = true;
    while !done || newest.changed().await.is_ok() {
        let snapshot = newest.borrow_and_update().clone();
        done = true;
        if snapshot.resources.complete() {
            let node = node.clone();
            done = keeper.write(move || encode(node, &snapshot)).await;
        }
    }
}

/// Writes a snapshot now.
///
/// # Errors
/// The message of the file system.
pub async fn write(dir: &StateDir, node: &str, snapshot: Snapshot) -> Result<(), String> {
    let node = node.to_owned();
    dir.write_off_thread(FILE, move || encode(node, &snapshot))
        .await
}

fn encode(node: String, snapshot: &Snapshot) -> Vec<u8> {
    let one = |type_url: &str, name: &String, version: &String, raw: &Bytes| OneResource {
        type_url: type_url.to_owned(),
        name: name.clone(),
        version: version.clone(),
        raw: raw.clone(),
    };
    let held = &snapshot.resources;
    let clusters = held
        .clusters
        .iter()
        .map(|(n, h)| one(CLUSTER, n, &h.version, &h.raw));
    let assignments = held
        .assignments
        .iter()
        .map(|(n, h)| one(ASSIGNMENT, n, &h.version, &h.raw));
    let indexes = held
        .indexes
        .iter()
        .map(|(n, h)| one(INDEX, n, &h.version, &h.raw));
    let resources = clusters.chain(assignments).chain(indexes).collect();
    LastGood {
        node,
        resources,
        revision: snapshot.revision,
    }
    .encode_to_vec()
}
