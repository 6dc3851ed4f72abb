//! One node, parsed from its record, and whether it has its lease.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use heddle_proto::store::v1::{AliveRecord, ClashRecord, NodeRecord};
use prost::Message as _;

use crate::store::{KeyValue, Revision};

/// One node. It stays known, with its epoch, after its lease has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub epoch: u64,
    pub process_id: String,
    /// The address at which other nodes reach its inbound listener.
    pub advertise: SocketAddr,
    pub region: String,
    pub zone: String,
    /// Whether it reaches the control plane over loopback.
    pub loopback: bool,
    /// Whether it has its lease.
    pub alive: bool,
    /// Whether its lease lapsed together with many others: its healthy instances stay in use, as UNKNOWN.
    pub suspect: bool,
    /// Whether its last process reported that it stops or leaves.
    pub left: bool,
    /// Whether its lease expired and the event of that is recorded.
    pub expired: bool,
    /// How long it has been suspect, as a leader last recorded.
    pub suspect_for: Duration,
    pub version: String,
    /// The replica that has its session; empty if the node is not alive.
    pub replica: String,
    /// The revision at which its current session took its lease; 0 if it is not alive.
    pub session: Revision,
    /// The addresses on which its proxy listens, without `advertise`.
    pub listeners: Vec<SocketAddr>,
    /// The network stack of its proxy; empty if unknown.
    pub host: String,
    /// Another process that keeps claiming this name while the current one is alive.
    pub clash: Option<Clash>,
}

/// The node that opens a session, as described in its Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub name: String,
    pub process_id: String,
    /// 0 for a new process; else the epoch that this process was given.
    pub epoch: u64,
    /// The number of this session among those of its process, from 1; 0 if the process does not number them.
    pub attempt: u64,
    pub advertise: SocketAddr,
    pub region: String,
    pub zone: String,
    pub version: String,
    pub loopback: bool,
    /// The addresses on which its proxy listens.
    pub listeners: Vec<SocketAddr>,
    /// The network stack of its proxy; empty if unknown.
    pub host: String,
}

/// A process that claims the name of another living process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    pub process_id: String,
    /// The epoch that it had before it was superseded; 0 if none.
    pub epoch: u64,
}

impl Clash {
    pub(in crate::registry) fn parse(value: &KeyValue) -> Self {
        let record = ClashRecord::decode(value.value.clone()).unwrap_or_default();
        Self {
            process_id: record.process_id,
            epoch: record.epoch,
        }
    }
}

impl Node {
    pub(in crate::registry) fn parse(name: &str, record: NodeRecord) -> Option<Self> {
        Some(Self {
            name: name.into(),
            epoch: record.epoch,
            process_id: record.process_id,
            advertise: record.advertise.parse().ok()?,
            region: record.region,
            zone: record.zone,
            loopback: record.loopback,
            alive: false,
            suspect: record.suspect,
            left: record.left,
            expired: record.expired,
            suspect_for: Duration::from_millis(record.suspect_ms),
            version: record.version,
            replica: String::new(),
            session: Revision(0),
            listeners: record
                .listeners
                .iter()
                .filter_map(|at| at.parse().ok())
                .collect(),
            host: record.host,
            clash: None,
        })
    }

    /// A node as it describes itself, before it has a record.
    #[must_use]
    pub fn described(identity: &NodeIdentity) -> Self {
        Self {
            name: identity.name.as_str().into(),
            epoch: identity.epoch,
            process_id: identity.process_id.clone(),
            advertise: identity.advertise,
            region: identity.region.clone(),
            zone: identity.zone.clone(),
            loopback: identity.loopback,
            alive: false,
            suspect: false,
            left: false,
            expired: false,
            suspect_for: Duration::ZERO,
            version: identity.version.clone(),
            replica: String::new(),
            session: Revision(0),
            listeners: identity.listeners.clone(),
            host: identity.host.clone(),
            clash: None,
        }
    }

    pub(in crate::registry) fn with_clash(mut self, clash: Option<&Clash>) -> Self {
        self.clash = clash.cloned();
        self
    }

    pub(in crate::registry) fn with_lease(mut self, alive: Option<&Alive>) -> Self {
        self.alive = alive.is_some();
        self.replica = alive.map(|alive| alive.replica.clone()).unwrap_or_default();
        self.session = alive.map_or(Revision(0), |alive| alive.session);
        self
    }

    /// Whether both proxies share their loopback addresses. If one of them does not report its host, they do if both
    /// reach the control plane over loopback, that is, if both run on its host.
    pub(in crate::registry) fn shares_host(&self, other: &Self) -> bool {
        if self.host.is_empty() || other.host.is_empty() {
            return self.loopback && other.loopback;
        }
        self.host == other.host
    }

    /// The fields that appear in a node's endpoints: clients need not be updated for a change of any other.
    pub(in crate::registry) fn seen_by_clients(&self) -> (SocketAddr, &str, &str, bool, bool) {
        (
            self.advertise,
            &self.region,
            &self.zone,
            self.loopback,
            self.suspect,
        )
    }
}

/// The content of the key on a node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Alive {
    replica: String,
    session: Revision,
}

impl Alive {
    pub(in crate::registry) fn parse(value: &KeyValue) -> Self {
        // The key's existence alone means that the node is alive, even if its record cannot be decoded.
        let record = AliveRecord::decode(value.value.clone()).unwrap_or_default();
        Self {
            replica: record.replica,
            session: value.mod_revision,
        }
    }
}
