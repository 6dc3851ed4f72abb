//! The fixture of all tests with faults of the replicated control plane: three replicas on a three-member etcd, two nodes
//! with callers and one instance each, and stock xDS clients (grpcio, grpc-go, grpc-js, Envoy) that call the same
//! instances. Every call is recorded, and `finish` asserts that none failed. The faults themselves are in the tests.

use std::net::IpAddr;
use std::time::Instant;

use heddle_tests::echo::{channel, reach};
use heddle_tests::envoy::Envoy;
use heddle_tests::etcd::Etcd;
use heddle_tests::load::{Kind, Load, Plan};
use heddle_tests::load_balancer::LoadBalancer;
use heddle_tests::mesh::{Builder, Mesh};
use heddle_tests::netns::Network;
use heddle_tests::stock::{self, Client};

/// Where the replicas and etcd run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// All on this host's loopback.
    Same,
    /// Each replica on its own host; nodes, clients and etcd on this one, etcd at its own address.
    Separate,
}

/// The nodes and their first instances.
pub(crate) const BASE: [(&str, &str); 2] = [("a", "a1"), ("b", "b1")];

// Dropped in this order: callers first, etcd last.
pub(crate) struct Fixture {
    load: Load,
    stock: Vec<Client>,
    envoy: Envoy,
    _load_balancer: LoadBalancer,
    pub(crate) mesh: Mesh,
    pub(crate) etcd: Etcd,
    /// Where instances listen.
    ip: IpAddr,
}

impl Fixture {
    pub(crate) async fn start(hosts: Hosts) -> Self {
        let (etcd, builder, ip) = cluster(hosts).await;
        let mut mesh = builder.start().await;
        for (node, id) in BASE {
            let start = mesh.echo_on(node, id, ip);
            mesh.instance(node, id, start).await;
        }
        let targets = mesh.targets();
        let balancer = LoadBalancer::start(&targets).await;
        let grpc: Vec<_> = targets.iter().map(|target| target.grpc).collect();
        let envoy = Envoy::start(&mesh, &grpc, "DELTA_GRPC");
        let stock: Vec<_> = stock::Kind::ALL
            .iter()
            .map(|&kind| Client::start(kind, &mesh, balancer.addr))
            .collect();
        let ids = BASE.map(|(_, id)| id);
        all_reach(&mesh, &envoy, &stock, &ids).await;
        let through = [
            mesh.node("a").outbound,
            mesh.node("b").outbound,
            envoy.listen,
        ];
        let load = Load::start(&Plan::new(Kind::Unsafe, &through));
        load.more(100).await;
        Self {
            load,
            stock,
            envoy,
            _load_balancer: balancer,
            mesh,
            etcd,
            ip,
        }
    }

    /// Adds an instance.
    pub(crate) async fn add(&mut self, node: &str, id: &str) {
        let start = self.mesh.echo_on(node, id, self.ip);
        self.mesh.instance(node, id, start).await;
    }

    /// The replica that Envoy is connected to.
    pub(crate) async fn replica_of_envoy(&self) -> &'static str {
        self.mesh.replica_of_client(&self.envoy.node_id()).await
    }

    /// Waits until every caller has made more calls.
    pub(crate) async fn calls_continue(&self) {
        self.load.more(150).await;
        for client in &self.stock {
            client.more(20).await;
        }
    }

    /// The same until that time.
    pub(crate) async fn calls_continue_until(&self, end: Instant) {
        while Instant::now() < end {
            self.calls_continue().await;
        }
    }

    /// Waits until every caller reaches exactly these instances.
    pub(crate) async fn all_callers_reach(&self, ids: &[&str]) {
        all_reach(&self.mesh, &self.envoy, &self.stock, ids).await;
    }

    /// Endpoint updates reach all callers: they reach an added instance, and no longer one that stops.
    pub(crate) async fn endpoints_update(&mut self) {
        self.add("b", "new").await;
        self.all_callers_reach(&["a1", "b1", "new"]).await;
        self.mesh.stop_instance("b", "new").await;
        self.all_callers_reach(&["a1", "b1"]).await;
    }

    /// After the fault: endpoint updates reach everyone, all replicas agree, no node expired, and no call failed at any time.
    pub(crate) async fn finish(mut self) {
        self.endpoints_update().await;
        self.mesh.replicas_agree(&["a1", "b1"]).await;
        // Only the control plane had a fault: both nodes were up all the time and their sessions moved within the lease, so
        // no node and no instance may have expired.
        let events = self.mesh.events().await;
        let mut kinds = events.iter().map(|event| event.kind.as_str());
        assert!(
            kinds.clone().any(|kind| kind == "node-joined"),
            "{events:#?}"
        );
        let given_up = [
            "node-expired",
            "node-suspect",
            "node-superseded",
            "instance-expired",
        ];
        assert!(!kinds.any(|kind| given_up.contains(&kind)), "{events:#?}");
        self.calls_continue().await;
        for client in &self.stock {
            assert!(client.calls().len() > 60);
        }
        self.load.finish().await.assert_none_failed(400);
    }
}

async fn all_reach(mesh: &Mesh, envoy: &Envoy, stock: &[Client], ids: &[&str]) {
    for node in ["a", "b"] {
        reach(&mesh.channel(node), ids).await;
    }
    reach(&channel(envoy.listen), ids).await;
    for client in stock {
        client.reaches(ids).await;
    }
}

/// etcd, a mesh on it, and the address at which instances are reachable from everywhere.
pub(crate) async fn cluster(hosts: Hosts) -> (Etcd, Builder, IpAddr) {
    let mesh = |etcd: &Etcd| Mesh::builder().nodes(2).replicas(3, &etcd.store());
    if hosts == Hosts::Same {
        let etcd = Etcd::cluster().await;
        let mesh = mesh(&etcd);
        return (etcd, mesh, IpAddr::from([127, 0, 0, 1]));
    }
    let network = Network::new();
    let (here, store) = (network.here(), network.also_here());
    let etcd = Etcd::builder().members(3).host(store).start().await;
    let mesh = mesh(&etcd).network(network);
    // A client that reaches the control plane from another host gets no loopback addresses.
    (etcd, mesh, here)
}
