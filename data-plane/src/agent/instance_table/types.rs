//! What the instance table gives to its callers: the view of an instance, its source, and the results of operations.
//! Plain values.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use heddle_proto::control::v1::{LocalInstance, ProtoService};
use heddle_proto::registry::v1::{Health, Instance, health_check::Kind};

use super::MAX_INSTANCES;
use crate::agent::{check_plan::CheckPlan, key::InstanceKey, schema::Schema};

/// One instance as everybody else sees it. Replaced as a whole when something changes.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub instance: Instance,
    pub address: SocketAddr,
    pub health: Health,
    pub reason: String,
    /// The health check in use; `Unspecified` as long as `auto` has not chosen one.
    pub checked_by: Kind,
    /// What it serves, as far as it is known.
    pub protos: Vec<ProtoService>,
    pub schema: Option<Schema>,
    /// Why its proto services or their descriptors are not (all) known. Empty: nothing is missing, or its reflection
    /// has not been tried yet.
    pub schema_reason: String,
    /// The registration's name in the API.
    pub registration: Arc<str>,
}

impl View {
    /// Whether its service claims the paths of its proto services; default: yes.
    #[must_use]
    pub fn claims_paths(&self) -> bool {
        self.instance.claim_paths.unwrap_or(true)
    }

    /// The form that the node session sends.
    #[must_use]
    pub fn to_local(&self) -> LocalInstance {
        LocalInstance {
            instance: Some(self.instance.clone()),
            health: self.health.into(),
            health_reason: self.reason.clone(),
            schema_sha256: self
                .schema
                .as_ref()
                .map(|s| s.sha256.clone())
                .unwrap_or_default(),
            protos: self.protos.clone(),
            schema_reason: self.schema_reason.clone(),
            checked_by: self.checked_by.into(),
        }
    }
}

/// The instances at one moment.
pub type Views = BTreeMap<InstanceKey, Arc<View>>;

/// Where an instance comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It registered itself and sends beats.
    Registered,
    /// A file of `--services-dir` names it.
    File(PathBuf),
    /// It is from the last process's state dir, and has not registered or sent a beat yet.
    Restored,
    /// It drains; it is removed by whoever drains it, or when its time is over.
    Leaving,
}

/// The result of applying a file's new content.
#[derive(Debug, Default)]
pub struct FileUpdateResult {
    pub joined: Vec<Joined>,
    /// Registrations that did not change.
    pub unchanged: Vec<Arc<str>>,
    pub leaving: Vec<Leaving>,
}

/// An instance that drains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub key: InstanceKey,
    pub registration: Arc<str>,
    /// The version of the change that made it drain.
    pub version: u64,
}

/// Why the control plane does not accept an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused by the control plane: {field}: {description}")]
pub struct Refusal {
    pub field: String,
    pub description: String,
}

/// What the control plane has decided on a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Pending,
    Accepted,
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{key} is defined in the services file {}: remove it there, or register under another \
        id", file.display())]
    OwnedByFile { key: InstanceKey, file: PathBuf },
    #[error("{key} has registered itself: choose another id, or remove it from the file")]
    OwnedByRegistration { key: InstanceKey },
    #[error(
        "{address} is a listener of this proxy ({listener}), so calls to {key} would loop: give \
         the address on which the instance itself listens"
    )]
    OwnListener {
        key: InstanceKey,
        address: SocketAddr,
        listener: &'static str,
    },
    #[error("this proxy is stopping: register with its successor, at the same address")]
    Stopping,
    #[error("this node has {MAX_INSTANCES} instances, the most that one node takes")]
    Full,
}

/// What the tasks of a new registration need to know.
#[derive(Clone, Debug)]
pub struct Joined {
    pub key: InstanceKey,
    pub registration: Arc<str>,
    pub address: SocketAddr,
    pub plan: CheckPlan,
    /// The health check in use; see [`View::checked_by`].
    pub checked_by: Kind,
    /// It speaks gRPC, so reflection is tried.
    pub has_reflection: bool,
    /// The address of a living instance with the same id that it replaced.
    pub ousted: Option<SocketAddr>,
}
