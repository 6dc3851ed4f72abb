//! What clients may see of one service, taken from the view in canonical order and separated by audience. The cost of a
//! change depends on the instances that changed, not on the size of the service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use heddle_proto::{control::v1::ProtoService, registry::v1::Protocol, xds::v1::PathClaim};

use super::{
    Assignment, Endpoint,
    digest::Digest,
    row::{self, Row},
    rows::Rows,
    totals::Totals,
};
use crate::{
    names::ServiceName,
    registry::{ChangedInstances, Instance, InstanceId, KnownService, View},
    store::Revision,
};

/// The kind of client: it decides which endpoints can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Our own proxies: every instance, with its node and inbound address.
    Proxy,
    /// Stock clients that connect over loopback: they can also use loopback addresses of nodes that connect the same
    /// way.
    DirectLocal,
    /// Stock clients from elsewhere.
    DirectRemote,
}

impl Audience {
    pub const ALL: [Self; 3] = [Self::Proxy, Self::DirectLocal, Self::DirectRemote];
}

/// What the resources of one service are built from.
#[derive(Clone, Debug)]
pub struct ServiceContent {
    /// "users.default"
    pub full_name: Arc<str>,
    pub name: ServiceName,
    pub protocol: Protocol,
    /// Union over the instances, sorted by name.
    pub protos: Vec<ProtoService>,
    /// The proto services whose paths it claims, sorted by name.
    pub claims: Vec<PathClaim>,
    /// The descriptors of most ready instances.
    pub schema_sha256: Option<Arc<str>>,
    /// While `protos` is empty: why they are unknown.
    pub schema_reason: Arc<str>,
    members: BTreeMap<InstanceId, Entry>,
    totals: Totals,
    rows: Rows,
    all: Digest,
    direct: Direct,
}

/// An instance, and its row once its node is known.
#[derive(Clone, Debug)]
struct Entry {
    instance: Arc<Instance>,
    row: Option<Arc<Row>>,
}

/// The endpoints for clients that are not proxies: each address once.
#[derive(Clone, Debug, Default)]
struct Direct {
    /// Rows by address, each list in canonical order.
    by_address: HashMap<(IpAddr, u16), Vec<Arc<Row>>>,
    local: Sum,
    remote: Sum,
}

/// The number of endpoints that an audience gets, and the sum of their digests.
#[derive(Clone, Debug, Default)]
struct Sum {
    count: usize,
    digest: Digest,
}

/// An instance, and what clients see of it.
type Seen = (Arc<Instance>, Option<(Endpoint, bool)>);

/// What the view says about one service, as far as it was read. The view is locked while this is read, so nothing is
/// built here.
#[derive(Debug)]
pub struct Reading {
    pub(super) full_name: Arc<str>,
    name: ServiceName,
    exists: bool,
    stands_in: Option<Arc<KnownService>>,
    claims: Vec<PathClaim>,
    /// Instances that are not listed were removed.
    all: bool,
    seen: Vec<(InstanceId, Option<Seen>)>,
}

impl Reading {
    /// Reads the instances that changed. None: none of them, because only the service's record changed.
    #[must_use]
    pub fn of(view: &View, name: &ServiceName, changed: Option<&ChangedInstances>) -> Self {
        let read = |instance: &Arc<Instance>| (Arc::clone(instance), row::endpoint(view, instance));
        let seen = match changed {
            None => Vec::new(),
            Some(ChangedInstances::These(ids)) => ids
                .iter()
                .map(|id| (id.clone(), view.instance_at(name, id).map(read)))
                .collect(),
            Some(ChangedInstances::All) => view
                .instances(name)
                .map(|each| {
                    let id = (Arc::clone(&each.node), Arc::clone(&each.id));
                    (id, Some(read(each)))
                })
                .collect(),
        };
        Self {
            full_name: name.to_string().into(),
            name: name.clone(),
            exists: view.instances_in(name) > 0 || view.stands_in(name).is_some(),
            stands_in: view.stands_in(name).cloned(),
            claims: view.path_claims(name).into_iter().map(path_claim).collect(),
            all: changed == Some(&ChangedInstances::All),
            seen,
        }
    }
}

impl ServiceContent {
    /// None if the service is not known. One without instances has no endpoints, and is otherwise unchanged.
    #[must_use]
    pub fn of(view: &View, name: &ServiceName) -> Option<Self> {
        Self::after(None, Reading::of(view, name, Some(&ChangedInstances::All)))
    }

    /// The content after a reading; none if the service was removed.
    #[must_use]
    pub(super) fn after(before: Option<Self>, reading: Reading) -> Option<Self> {
        if !reading.exists {
            return None;
        }
        let mut content = before.unwrap_or_else(|| Self {
            full_name: Arc::clone(&reading.full_name),
            name: reading.name.clone(),
            protocol: Protocol::Grpc,
            protos: Vec::new(),
            claims: Vec::new(),
            schema_sha256: None,
            schema_reason: Arc::from(""),
            members: BTreeMap::new(),
            totals: Totals::default(),
            rows: Rows::default(),
            all: Digest::default(),
            direct: Direct::default(),
        });
        content.take(reading);
        Some(content)
    }

    fn take(&mut self, reading: Reading) {
        if reading.all {
            let named: BTreeSet<&InstanceId> = reading.seen.iter().map(|(id, _)| id).collect();
            let held = self.members.keys();
            let gone: Vec<_> = held.filter(|id| !named.contains(id)).cloned().collect();
            for id in &gone {
                self.remove(id);
            }
        }
        for (id, found) in reading.seen {
            match found {
                Some((instance, endpoint)) => self.put(id, instance, endpoint),
                None => self.remove(&id),
            }
        }
        let known = reading.stands_in;
        self.claims = reading.claims;
        let first = self.members.values().next();
        if let Some(protocol) = first
            .map(|first| first.instance.protocol)
            .or(known.as_ref().map(|known| known.protocol))
        {
            self.protocol = protocol;
        }
        self.protos = match &known {
            Some(known) => known.protos.clone(),
            None => self.totals.protos(),
        };
        let schema = self.totals.schema().cloned();
        self.schema_sha256 = schema.or_else(|| known.and_then(|it| it.schema_sha256.clone()));
        self.schema_reason = self.why_unknown().into();
    }

    /// Why its proto services are unknown: the reason of the first instance that has one, so that every replica gives
    /// the same.
    fn why_unknown(&self) -> &str {
        if !self.protos.is_empty() || self.protocol != Protocol::Grpc {
            return "";
        }
        let mut reasons = self.members.values().map(|it| &*it.instance.schema_reason);
        reasons
            .find(|reason| !reason.is_empty())
            .unwrap_or_default()
    }

    fn put(&mut self, id: InstanceId, instance: Arc<Instance>, endpoint: Option<(Endpoint, bool)>) {
        let held = self.members.remove(&id);
        let counts_alike = held.as_ref().is_some_and(|held| {
            let held = &held.instance;
            (&held.protos, &held.schema_sha256, held.health)
                == (&instance.protos, &instance.schema_sha256, instance.health)
        });
        if !counts_alike {
            if let Some(held) = &held {
                self.totals.remove(&held.instance);
            }
            self.totals.add(&instance);
        }
        let old = held.and_then(|held| held.row);
        let row = match (old, endpoint) {
            // An unchanged row keeps its encoded bytes.
            (Some(old), Some((endpoint, loopback))) if old.is_of(&endpoint, loopback) => Some(old),
            (old, new) => {
                self.take_row(old.as_ref());
                let new = new.map(|(endpoint, loopback)| Arc::new(Row::new(endpoint, loopback)));
                self.put_row(new.as_ref());
                new
            }
        };
        self.members.insert(id, Entry { instance, row });
    }

    fn remove(&mut self, id: &InstanceId) {
        if let Some(held) = self.members.remove(id) {
            self.totals.remove(&held.instance);
            self.take_row(held.row.as_ref());
        }
    }

    fn put_row(&mut self, row: Option<&Arc<Row>>) {
        if let Some(row) = row {
            self.all.add(row.digest(true));
            self.rows.insert(Arc::clone(row));
            self.direct.put(row);
        }
    }

    fn take_row(&mut self, row: Option<&Arc<Row>>) {
        if let Some(row) = row {
            self.all.subtract(row.digest(true));
            self.rows.remove(row);
            self.direct.take(row);
        }
    }

    /// It has no instances.
    #[must_use]
    pub fn has_no_instances(&self) -> bool {
        self.rows.is_empty()
    }

    /// The number of endpoints.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        self.rows.len()
    }

    #[must_use]
    pub fn assignment(&self, audience: Audience) -> Assignment {
        let (count, sum) = match audience {
            Audience::Proxy => (self.rows.len(), &self.all),
            Audience::DirectLocal => (self.direct.local.count, &self.direct.local.digest),
            Audience::DirectRemote => (self.direct.remote.count, &self.direct.remote.digest),
        };
        let (name, rows) = (Arc::clone(&self.full_name), self.rows.clone());
        Assignment::new(name, audience, rows, count, sum)
    }
}

impl Direct {
    fn put(&mut self, row: &Arc<Row>) {
        self.change(row, |rows, found| {
            if let Err(at) = found {
                rows.insert(at, Arc::clone(row));
            }
        });
    }

    fn take(&mut self, row: &Arc<Row>) {
        self.change(row, |rows, found| {
            if let Ok(at) = found {
                rows.remove(at);
            }
        });
    }

    /// Changes the rows of one address. Only the first of them counts, before and after.
    fn change(&mut self, row: &Row, change: impl FnOnce(&mut Vec<Arc<Row>>, Result<usize, usize>)) {
        if !row.is_for_direct_clients() {
            return;
        }
        let address = row.as_dialled();
        let mut rows = self.by_address.remove(&address).unwrap_or_default();
        let sums = [
            Some(&mut self.local),
            (!row.is_loopback()).then_some(&mut self.remote),
        ];
        let before = rows.first().cloned();
        let found = rows.binary_search_by(|each| each.place_cmp(row));
        change(&mut rows, found);
        for sum in sums.into_iter().flatten() {
            if let Some(before) = &before {
                sum.count -= 1;
                sum.digest.subtract(before.digest(false));
            }
            if let Some(now) = rows.first() {
                sum.count += 1;
                sum.digest.add(now.digest(false));
            }
        }
        if !rows.is_empty() {
            self.by_address.insert(address, rows);
        }
    }
}

/// Why clients that are not proxies do not get an endpoint, by its node and instance id; absent if they get it.
#[must_use]
pub fn hidden_from_direct_clients(view: &View, name: &ServiceName) -> BTreeMap<InstanceId, String> {
    let mut hidden = BTreeMap::new();
    let mut seen = BTreeMap::new();
    let mut rows: Vec<Row> = view
        .instances(name)
        .filter_map(|each| row::endpoint(view, each))
        .map(|(endpoint, loopback)| Row::new(endpoint, loopback))
        .collect();
    rows.sort_by(Row::place_cmp);
    for row in rows {
        let (endpoint, address) = (&row.endpoint, row.endpoint.address);
        let (node, id) = (&endpoint.node, &endpoint.instance);
        let why = if row.drains() {
            "it is draining; clients that connect to instances directly would still call it if there were no other".to_owned()
        } else if !row.is_dialled() {
            format!("{address} is not an address that a client can dial")
        } else if !row.is_reachable(row.loopback_node) {
            format!(
                "{address} is a loopback address, and node {node} reaches the control plane from elsewhere"
            )
        } else if let Some(first) = seen.get(&row.as_dialled()) {
            format!("{address} is also the address of {first}: clients accept an address only once")
        } else {
            seen.insert(row.as_dialled(), format!("{node}/{id}"));
            continue;
        };
        hidden.insert((Arc::clone(node), Arc::clone(id)), why);
    }
    hidden
}

fn path_claim((proto, since): (Arc<str>, Revision)) -> PathClaim {
    PathClaim {
        proto: proto.to_string(),
        since: since.0,
    }
}
