//! The mesh as this proxy routes by it: the agent's instances (so that they work without a control plane) joined with
//! those of other nodes (from xDS) into one routing table. The table is replaced as a whole, and only when its content
//! changed. No sockets; the data path uses the table.

mod conflicts;
mod join;
mod known;
mod uids;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::debug;

use crate::{
    agent::{Agent, key::InstanceKey},
    balance::{endpoints::EndpointSet, slow_start::SlowStart},
    route::{RouteTable, Service, table::Claim},
    xds,
};

pub use join::{SchemaClaim, ServiceSpec};

/// The routing table with its related data.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub table: Arc<RouteTable>,
    /// The agent's version that it includes.
    pub agent_version: u64,
    /// This node's instances by the uid of their endpoint, to interpret the workers' reports.
    pub locals: Arc<HashMap<u64, InstanceKey>>,
    /// The descriptors of each service, by full name.
    pub schemas: Arc<Vec<SchemaClaim>>,
    /// The number of tables built since start.
    pub swaps: u64,
}

/// The name and place of this proxy.
#[derive(Clone, Debug)]
pub struct LocalNode {
    pub node: String,
    pub own_names: Vec<String>,
    pub region: String,
    pub zone: String,
}

/// The namespace of callers, until they have an identity.
const NAMESPACE: &str = "default";
/// Changes within this time go into one table: long enough for all parts of one change, too short to be noticed.
const SETTLE: Duration = Duration::from_millis(3);

/// The builder's task.
pub struct TableBuilder {
    local_node: LocalNode,
    agent: Agent,
    xds: watch::Receiver<Arc<xds::View>>,
    joiner: join::Joiner,
    /// The services of the last table; unchanged ones are reused.
    made: BTreeMap<String, (Arc<ServiceSpec>, Arc<EndpointSet>)>,
    slow_start: SlowStart,
    was_ready: bool,
    /// The conflicts over paths that were last logged.
    conflicts: conflicts::Conflicts,
    mesh: watch::Sender<Mesh>,
}

/// Sets `owned`: the proto services whose calls by path a service gets. Reflection shows its schema for these.
fn set_owned(schemas: &mut [SchemaClaim], table: &RouteTable) {
    for schema in schemas {
        let protos = schema.protos.iter();
        let owned = protos.filter(|proto| match table.claim(proto, NAMESPACE) {
            Claim::One(service) => *service.name == *schema.service,
            Claim::None | Claim::Many(_) => false,
        });
        schema.owned = owned.cloned().collect();
    }
}

impl TableBuilder {
    /// A table of an incomplete view is not ready: calls to services in it are carried, others wait for the rest.
    #[must_use]
    pub fn new(
        local_node: LocalNode,
        agent: Agent,
        xds: watch::Receiver<Arc<xds::View>>,
    ) -> (Self, watch::Receiver<Mesh>) {
        let first = Mesh {
            table: Arc::new(RouteTable::empty(&local_node.node)),
            agent_version: 0,
            locals: Arc::default(),
            schemas: Arc::default(),
            swaps: 0,
        };
        let mesh = watch::Sender::new(first);
        let receiver = mesh.subscribe();
        let builder = Self {
            local_node,
            agent,
            xds,
            joiner: join::Joiner::default(),
            made: BTreeMap::new(),
            slow_start: SlowStart::default(),
            was_ready: false,
            conflicts: conflicts::Conflicts::default(),
            mesh,
        };
        (builder, receiver)
    }

    /// Builds a table after every change, until the process ends; `publish` gets each one before anyone else sees it.
    pub async fn run(mut self, publish: impl Fn(Arc<RouteTable>)) {
        let mut changes = self.agent.changes();
        loop {
            changes.borrow_and_update();
            self.xds.borrow_and_update();
            self.build_table(&publish);
            let due = async {
                match self.joiner.next() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                changed = changes.changed() => if changed.is_err() { return },
                changed = self.xds.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    fn build_table(&mut self, publish: &impl Fn(Arc<RouteTable>)) {
        let (agent_version, views) = self.agent.views();
        let order = self.agent.claims();
        let xds = Arc::clone(&self.xds.borrow());
        let ready = xds.complete;
        let now = tokio::time::Instant::now().into_std();
        let mut joined = self
            .joiner
            .join(&self.local_node, &views, &order, &xds, now);
        let swaps = self.mesh.borrow().swaps;
        let same = swaps > 0
            && ready == self.was_ready
            && joined.services.len() == self.made.len()
            && joined
                .services
                .iter()
                .all(|(name, spec)| self.made.get(name).is_some_and(|(old, _)| old == spec));
        if same {
            set_owned(&mut joined.schemas, &self.mesh.borrow().table);
            self.mesh.send_modify(|mesh| {
                mesh.agent_version = agent_version;
                mesh.schemas = Arc::new(joined.schemas);
            });
            return;
        }
        let table = Arc::new(self.table(joined.services, ready, now));
        self.was_ready = ready;
        debug!(services = self.made.len(), ready, "routing table swapped");
        publish(Arc::clone(&table));
        set_owned(&mut joined.schemas, &table);
        self.conflicts.report_changes(&table, &views);
        self.mesh.send_replace(Mesh {
            table,
            agent_version,
            locals: Arc::new(joined.locals),
            schemas: Arc::new(joined.schemas),
            swaps: swaps + 1,
        });
    }

    fn table(
        &mut self,
        services: BTreeMap<String, Arc<ServiceSpec>>,
        ready: bool,
        now: Instant,
    ) -> RouteTable {
        let mut builder = RouteTable::builder(&self.local_node.node, &self.local_node.own_names);
        builder.ready(ready);
        builder.locality(&self.local_node.region, &self.local_node.zone);
        let mut made = BTreeMap::new();
        for (name, spec) in services {
            let old = self.made.remove(&name);
            if old
                .as_ref()
                .is_some_and(|(old, _)| !old.endpoints_known && spec.endpoints_known)
            {
                // The endpoints are not new, only unknown to this node until now: no slow start.
                self.slow_start.forget(&name);
            }
            let (endpoints, warming) = match old {
                Some((old, set)) if old.endpoints == spec.endpoints => {
                    (set, self.slow_start.warming(&name, now))
                }
                _ => {
                    let endpoints = spec.endpoints.clone();
                    let usable = endpoints.iter().filter(|e| e.health.usable());
                    let warming = self.slow_start.usable(&name, usable.map(|e| e.uid), now);
                    (Arc::new(EndpointSet { endpoints }), warming)
                }
            };
            let mut service = Service::new(&spec.service, &spec.namespace);
            service.protocol = spec.protocol;
            service.protos.clone_from(&spec.protos);
            service.protos_unknown = spec.schema_reason.as_str().into();
            service.endpoints_known = spec.endpoints_known;
            service.endpoints = Arc::clone(&endpoints);
            service.warming = warming;
            builder.service(service);
            made.insert(name, (spec, endpoints));
        }
        self.made = made;
        self.slow_start.retain(|name| self.made.contains_key(name));
        builder.build()
    }
}
