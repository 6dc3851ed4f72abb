//! Instances that have left, or are leaving, and that the control plane may not know of: kept in the state dir, so that
//! the next process neither restores them nor misses them. Most are saved with the instances (`saved`). Those that leave
//! a process that is stopping, and has released the state dir, get a file of that process (`left-<process>`): best
//! effort, one small file per process, removed by the next one. Which instances leave is not decided here.

use std::sync::Arc;

use bytes::Bytes;
use heddle_proto::control::v1::InstanceRef;
use prost::Message;
use tracing::{info, warn};

use super::{Agent, key::InstanceKey, removal_log::Cause};
use crate::state_dir::StateDir;

/// The beginning of the names of the files.
const PREFIX: &str = "left-";

/// An instance that has left, or is leaving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftInstance {
    pub key: InstanceKey,
    pub registration: Arc<str>,
    /// Why, if it did not ask for it.
    pub cause: Option<Cause>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedLeft {
    #[prost(message, optional, tag = "1")]
    instance: Option<InstanceRef>,
    #[prost(string, tag = "2")]
    registration: String,
    /// Empty: it asked for it.
    #[prost(string, tag = "3")]
    cause: String,
}

#[derive(Clone, PartialEq, Message)]
struct SavedRecord {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(message, repeated, tag = "2")]
    left: Vec<SavedLeft>,
}

impl SavedLeft {
    pub(super) fn of(left: &LeftInstance) -> Self {
        Self {
            instance: Some(left.key.to_ref()),
            registration: left.registration.to_string(),
            cause: left
                .cause
                .as_ref()
                .map(Cause::to_string)
                .unwrap_or_default(),
        }
    }

    pub(super) fn read(self) -> Option<LeftInstance> {
        Some(LeftInstance {
            key: InstanceKey::from_ref(self.instance?),
            registration: self.registration.into(),
            cause: Cause::from_text(&self.cause),
        })
    }
}

/// What earlier processes of this node wrote after they had released the state dir. Content that cannot be decoded is
/// ignored.
pub(super) fn of_earlier_processes(dir: &StateDir, node: &str) -> Vec<LeftInstance> {
    let records = dir.read_beside(PREFIX).into_iter();
    let records = records.filter_map(|bytes: Bytes| SavedRecord::decode(bytes).ok());
    records
        .filter(|record| record.node == node)
        .flat_map(|record| record.left)
        .filter_map(SavedLeft::read)
        .collect()
}

/// Removes the files of earlier processes: what they say is saved with the instances now.
pub(super) fn forget_earlier_processes(dir: &StateDir) {
    dir.remove_beside(PREFIX);
}

impl Agent {
    /// The instances that drain, and the removed ones that the control plane may not know of.
    #[must_use]
    pub fn left(&self) -> Vec<LeftInstance> {
        self.table().left()
    }

    /// Whether the last process of this node left instances: the mesh may know them.
    pub(super) fn had_predecessor(&self) -> bool {
        self.table().had_predecessor()
    }

    pub(super) fn awaits_return(&self) -> bool {
        self.table().awaits_return()
    }

    /// These instances left the last process of this node.
    pub(super) fn restore_left(&self, left: Vec<LeftInstance>) {
        for one in left {
            let key = one.key.clone();
            if self.edit(|table| table.restore_left(one)) {
                info!(instance = %key, "removed: it left while the last process of this node was stopping");
            }
        }
    }
}

/// The file of a process that has released the state dir.
#[derive(Debug)]
pub struct LeftRecord {
    /// `None`: this process has none, and nothing is recorded.
    dir: Option<StateDir>,
    name: String,
    /// What the next process knows already.
    saved: Vec<LeftInstance>,
}

impl LeftRecord {
    /// `saved`: what was saved with the instances.
    #[must_use]
    pub fn new(dir: Option<StateDir>, process_id: &str, saved: Vec<LeftInstance>) -> Self {
        Self {
            dir,
            name: format!("{PREFIX}{process_id}"),
            saved,
        }
    }

    /// Writes after every change, until it is dropped.
    pub async fn keep(&mut self, agent: &Agent) {
        let mut changes = agent.changes();
        loop {
            changes.borrow_and_update();
            self.update(agent).await;
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Writes, if more instances have left. Without it the next process restores them until their time is over.
    pub async fn update(&mut self, agent: &Agent) {
        let Some(dir) = self.dir.clone() else { return };
        let left = agent.left();
        if left == self.saved {
            return;
        }
        let record = SavedRecord {
            node: agent.node().to_owned(),
            left: left.iter().map(SavedLeft::of).collect(),
        };
        let name = self.name.clone();
        let write = move || dir.write_beside(&name, &record.encode_to_vec());
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => self.saved = left,
            Ok(Err(error)) => warn!("cannot record in the state dir which instances left: {error}"),
            Err(_) => {}
        }
    }
}
