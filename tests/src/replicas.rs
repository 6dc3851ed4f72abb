//! The control plane of a mesh: one replica on an embedded store, or several on one etcd, each at addresses of its own
//! that stay the same over restarts, on this host or on one of its own. Here they are started, killed, stopped and
//! compared; what they do is none of its business.

use std::net::SocketAddr;

use heddle_proto::status::v1::mesh_status_client::MeshStatusClient;
use heddle_proto::status::v1::{
    Event, GetMeshRequest, ListProxiesRequest, ListServicesRequest, Service, WatchEventsRequest,
};
use tonic::transport::Channel;

use crate::echo::channel;
use crate::load_balancer::Target;
use crate::mesh::Mesh;
use crate::netns::{Host, Network};
use crate::process::{Process, Ready, Start};
use crate::temp::free_addr;
use crate::tools::binary;
use crate::wait::{seen, until};

/// Names of replicas in their order.
pub const REPLICAS: [&str; 3] = ["r1", "r2", "r3"];

/// One replica and its process while it runs.
pub struct Replica {
    pub name: &'static str,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    // Dropped in this order: what runs in a host goes first.
    process: Option<Process>,
    host: Option<Host>,
}

impl Replica {
    pub(crate) fn new(name: &'static str, network: Option<&mut Network>) -> Self {
        let host = network.map(|network| network.host(name));
        let addr = |port| match &host {
            Some(host) => SocketAddr::new(host.addr, port),
            None => free_addr(),
        };
        Self {
            name,
            grpc: addr(15010),
            http: addr(15014),
            process: None,
            host,
        }
    }

    /// The host that it has for itself.
    pub fn host(&self) -> &Host {
        self.host.as_ref().expect("a mesh on a network")
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the replica runs")
    }

    fn start(&self, store: &str) -> Start {
        let start = Start::new(
            &format!("heddle-control {}", self.name),
            &binary("heddle-control"),
        )
        .args(["--listen", &self.grpc.to_string()])
        .args(["--http", &self.http.to_string()])
        .args(["--replica", self.name])
        .args(["--store", store]);
        match &self.host {
            // Other hosts of the test reach it there.
            Some(host) => host
                .inside(start)
                .args(["--insecure-listen", &self.grpc.to_string()])
                .args(["--insecure-listen", &self.http.to_string()]),
            None => start,
        }
    }
}

impl Mesh {
    pub fn replica(&self, name: &str) -> &Replica {
        let mut replicas = self.replicas.iter();
        replicas
            .find(|replica| replica.name == name)
            .expect("a replica of this mesh")
    }

    fn replica_mut(&mut self, name: &str) -> &mut Replica {
        let mut replicas = self.replicas.iter_mut();
        replicas
            .find(|replica| replica.name == name)
            .expect("a replica of this mesh")
    }

    fn running(&self) -> impl Iterator<Item = &Replica> {
        let replicas = self.replicas.iter();
        replicas.filter(|replica| replica.process.is_some())
    }

    /// The addresses of the replicas, for a load balancer or a list of servers.
    pub fn targets(&self) -> Vec<Target> {
        self.replicas
            .iter()
            .map(|&Replica { grpc, http, .. }| Target { grpc, http })
            .collect()
    }

    /// All replicas, started side by side.
    pub(crate) async fn start_replicas(&mut self) {
        for replica in &mut self.replicas {
            replica.process = Some(replica.start(&self.store).spawn());
        }
        for replica in &mut self.replicas {
            let process = replica.process.as_mut().expect("just started");
            process.ready().await;
        }
    }

    /// Starts one at the same addresses and on the same store as before.
    pub async fn start_replica(&mut self, name: &str) -> Ready {
        let mut process = self.replica(name).start(&self.store).spawn();
        let ready = process.ready().await;
        self.replica_mut(name).process = Some(process);
        ready
    }

    /// Stops one with SIGTERM; it must exit with 0.
    pub async fn stop_replica(&mut self, name: &str) {
        let process = self.replica_mut(name).process.take();
        process.expect("the replica runs").stop_cleanly().await;
    }

    /// Kills one with SIGKILL.
    pub async fn kill_replica(&mut self, name: &str) {
        let process = self.replica_mut(name).process.take();
        process.expect("the replica runs").kill().await;
    }

    pub fn status_of(&self, name: &str) -> MeshStatusClient<Channel> {
        MeshStatusClient::new(channel(self.replica(name).grpc))
    }

    /// The replica that holds a node's session, other than `but`, which is not queried either.
    pub async fn replica_of(&self, node: &str, but: &str) -> &'static str {
        let mut others = self.running().filter(|replica| replica.name != but);
        let queried = others.next().expect("another replica runs").name;
        let what = format!("a replica other than {but:?} holds the session of node {node}");
        until(&what, async || {
            let mesh = self.status_of(queried).get_mesh(GetMeshRequest {}).await;
            let mesh = mesh.map_err(|status| status.to_string())?.into_inner();
            let nodes = format!("{:?}", mesh.nodes);
            let found = mesh.nodes.iter().find(|found| found.name == node);
            let held = found.filter(|node| node.alive).map(|node| &node.replica);
            let mut replicas = self.replicas.iter().filter(|replica| replica.name != but);
            let replica = replicas.find(|replica| Some(replica.name) == held.map(String::as_str));
            replica.map(|replica| replica.name).ok_or(nodes)
        })
        .await
    }

    /// The replica that an xDS client is connected to.
    pub async fn replica_of_client(&self, node_id: &str) -> &'static str {
        until(&format!("xDS client {node_id} is listed"), async || {
            let listed = self.status().list_proxies(ListProxiesRequest {}).await;
            let listed = listed.map_err(|status| status.to_string())?.into_inner();
            let client = listed.proxies.iter().find(|each| each.node_id == node_id);
            let replica = client.map(|client| client.replica.clone());
            let mut replicas = self.replicas.iter();
            let found = replicas.find(|each| replica.as_deref() == Some(each.name));
            let names = listed.proxies.iter().map(|each| &each.node_id);
            found
                .map(|found| found.name)
                .ok_or_else(|| format!("{:?}", names.collect::<Vec<_>>()))
        })
        .await
    }

    /// Waits until every replica that runs has exactly these instances of heddle-echo, and all of them say the same of
    /// every service.
    pub async fn replicas_agree(&self, expected: &[&str]) {
        until("all replicas have the same services", async || {
            let mut first: Option<Vec<Service>> = None;
            for replica in self.running() {
                let mut status = self.status_of(replica.name);
                let listed = status.list_services(ListServicesRequest::default());
                let listed = listed.await.map_err(|status| status.to_string())?;
                let services = listed.into_inner().services;
                let mut echo = services.iter().filter(|s| s.name == "heddle-echo.default");
                let endpoints = echo.next().map(|echo| echo.endpoints.as_slice());
                let mut ids: Vec<_> = endpoints
                    .unwrap_or_default()
                    .iter()
                    .map(|endpoint| endpoint.id.as_str())
                    .collect();
                ids.sort_unstable();
                seen(ids == expected, format!("{} has {ids:?}", replica.name))?;
                let before = first.get_or_insert_with(|| services.clone());
                seen(
                    *before == services,
                    format!("{before:#?}\nbut {} has {services:#?}", replica.name),
                )?;
            }
            Ok::<_, String>(())
        })
        .await;
    }

    /// What has happened in this mesh so far, oldest first.
    pub async fn events(&self) -> Vec<Event> {
        let answered = self
            .status()
            .watch_events(WatchEventsRequest::default())
            .await;
        let mut answers = answered.expect("events are served").into_inner();
        let mut events = Vec::new();
        loop {
            let answer = answers.message().await.expect("events are served");
            let answer = answer.expect("the watch goes on");
            events.extend(answer.events);
            if answer.initial_done {
                return events;
            }
        }
    }

    // ---- the only one ----

    pub async fn start_control(&mut self) -> Ready {
        self.start_replica(REPLICAS[0]).await
    }

    pub async fn stop_control(&mut self) {
        self.stop_replica(REPLICAS[0]).await;
    }

    pub async fn kill_control(&mut self) {
        self.kill_replica(REPLICAS[0]).await;
    }

    pub fn control(&self) -> &Process {
        self.replicas[0].process()
    }

    /// The status of the mesh, from the first replica that runs.
    pub fn status(&self) -> MeshStatusClient<Channel> {
        let replica = self.running().next().unwrap_or(&self.replicas[0]);
        self.status_of(replica.name)
    }
}
