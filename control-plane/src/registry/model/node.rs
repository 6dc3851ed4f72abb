//! One node, parsed from its record, and whether it holds its lease.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use heddle_proto::store::v1::{AliveRecord, ClashRecord, NodeRecord};
use prost::Message as _;

use crate::store::{KeyValue, Revision};

/// One node. It stays known, with its epoch, after its lease has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub epoch: u64,
    pub process_id: String,
    /// Where other nodes reach its inbound.
    pub advertise: SocketAddr,
    pub region: String,
    pub zone: String,
    /// It reaches the control plane over loopback.
    pub loopback: bool,
    /// Holds its lease.
    pub alive: bool,
    /// Its lease lapsed together with many others: its instances stay in use, as UNKNOWN.
    pub suspect: bool,
    /// Its last process said that it stops or leaves.
    pub left: bool,
    /// For how long it has been suspect, as a leader noted last.
    pub suspect_for: Duration,
    pub version: String,
    /// Which replica holds its session; empty when it is not alive.
    pub replica: String,
    /// The revision at which its present session took its lease; 0 when it is not alive.
    pub session: Revision,
    /// Where its proxy listens, `advertise` not included.
    pub listeners: Vec<SocketAddr>,
    /// The network stack of its proxy; empty: not known.
    pub host: String,
    /// Another process that keeps claiming this name while its holder lives.
    pub clash: Option<Clash>,
}

/// The node that opens a session, as its Hello describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub name: String,
    pub process_id: String,
    /// 0 for a new process; else the epoch that this process was given.
    pub epoch: u64,
    /// Which of this process's sessions it is, from 1; 0: it does not count.
    pub attempt: u64,
    pub advertise: SocketAddr,
    pub region: String,
    pub zone: String,
    pub version: String,
    pub loopback: bool,
    /// Where its proxy listens.
    pub listeners: Vec<SocketAddr>,
    /// The network stack of its proxy; empty: not known.
    pub host: String,
}

/// A process that claims a name which another one holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    pub process_id: String,
    /// The epoch that it had before it was superseded; 0: none.
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

    /// A node as it describes itself, before its record says so.
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

    /// Whether both proxies have their loopback addresses in common. Of one that does not say it is known only whether it
    /// reaches the control plane over loopback, and so runs beside it.
    pub(in crate::registry) fn shares_host(&self, other: &Self) -> bool {
        if self.host.is_empty() || other.host.is_empty() {
            return self.loopback && other.loopback;
        }
        self.host == other.host
    }

    /// What of a node stands in its endpoints: a change of anything else is no news for clients.
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

/// What the key on a node's lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Alive {
    replica: String,
    session: Revision,
}

impl Alive {
    pub(in crate::registry) fn parse(value: &KeyValue) -> Self {
        // The key alone says that the node lives: a record that cannot be read must not take it away.
        let record = AliveRecord::decode(value.value.clone()).unwrap_or_default();
        Self {
            replica: record.replica,
            session: value.mod_revision,
        }
    }
}
