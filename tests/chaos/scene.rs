//! What every fault of the replicated control plane is shown on: three replicas on an etcd of three, two nodes with
//! callers and an instance each, and stock xDS clients (grpcio, grpc-go, grpc-js, Envoy) that call the same instances.
//! From the start to the end every call is in a book, and `finish` asserts that none failed. The faults are the tests'.

use std::net::IpAddr;
use std::time::Instant;

use heddle_tests::echo::{channel, reach};
use heddle_tests::envoy::Envoy;
use heddle_tests::etcd::Etcd;
use heddle_tests::front::Front;
use heddle_tests::ledger::{Kind, Load, Plan};
use heddle_tests::mesh::{Builder, Mesh};
use heddle_tests::netns::Network;
use heddle_tests::stock::{self, Client};

/// Where the replicas and etcd run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// All on this host's loopback.
    Here,
    /// Each replica on a host of its own; nodes, clients and etcd on this one, etcd at an address of its own.
    Apart,
}

/// The nodes, and what is on them from the start.
pub(crate) const BASE: [(&str, &str); 2] = [("a", "a1"), ("b", "b1")];

// Dropped in this order: callers first, etcd last.
pub(crate) struct Scene {
    load: Load,
    stock: Vec<Client>,
    envoy: Envoy,
    _front: Front,
    pub(crate) mesh: Mesh,
    pub(crate) etcd: Etcd,
    /// Where instances listen.
    ip: IpAddr,
}

impl Scene {
    pub(crate) async fn start(place: Place) -> Self {
        let (etcd, builder, ip) = cluster(place).await;
        let mut mesh = builder.start().await;
        for (node, id) in BASE {
            let start = mesh.echo_on(node, id, ip);
            mesh.instance(node, id, start).await;
        }
        let targets = mesh.targets();
        let front = Front::over(&targets).await;
        let grpc: Vec<_> = targets.iter().map(|target| target.grpc).collect();
        let envoy = Envoy::start(&mesh, &grpc, "DELTA_GRPC");
        let stock: Vec<_> = stock::Kind::ALL
            .iter()
            .map(|&kind| Client::start(kind, &mesh, front.addr))
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
            _front: front,
            mesh,
            etcd,
            ip,
        }
    }

    /// A further instance; everybody who can be told of it is told later.
    pub(crate) async fn add(&mut self, node: &str, id: &str) {
        let start = self.mesh.echo_on(node, id, self.ip);
        self.mesh.instance(node, id, start).await;
    }

    /// The replica that Envoy is led by.
    pub(crate) async fn replica_of_envoy(&self) -> &'static str {
        self.mesh.replica_of_client(&self.envoy.node_id()).await
    }

    /// Everybody calls on.
    pub(crate) async fn goes_on(&self) {
        self.load.more(150).await;
        for client in &self.stock {
            client.more(20).await;
        }
    }

    /// Everybody calls on until then.
    pub(crate) async fn goes_on_until(&self, end: Instant) {
        while Instant::now() < end {
            self.goes_on().await;
        }
    }

    /// Every caller, ours and the strangers, reaches exactly these.
    pub(crate) async fn everybody_reaches(&self, ids: &[&str]) {
        all_reach(&self.mesh, &self.envoy, &self.stock, ids).await;
    }

    /// The control plane leads: an instance that is added is reached by everybody, one that stops by nobody.
    pub(crate) async fn follows(&mut self) {
        self.add("b", "new").await;
        self.everybody_reaches(&["a1", "b1", "new"]).await;
        self.mesh.stop_instance("b", "new").await;
        self.everybody_reaches(&["a1", "b1"]).await;
    }

    /// After the fault: all follow again, all replicas say the same, no node was ever given up, and no call was lost in all
    /// that time.
    pub(crate) async fn finish(mut self) {
        self.follows().await;
        self.mesh.replicas_agree(&["a1", "b1"]).await;
        // The fault was the control plane's: both nodes lived all the time, and their sessions moved within the lease; and
        // no instance went that had not asked to.
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
        self.goes_on().await;
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

/// etcd, a mesh that is on it, and the address at which instances are reached from everywhere.
pub(crate) async fn cluster(place: Place) -> (Etcd, Builder, IpAddr) {
    let mesh = |etcd: &Etcd| Mesh::builder().nodes(2).replicas(3, &etcd.store());
    if place == Place::Here {
        let etcd = Etcd::cluster().await;
        let mesh = mesh(&etcd);
        return (etcd, mesh, IpAddr::from([127, 0, 0, 1]));
    }
    let network = Network::new();
    let (here, store) = (network.here(), network.also_here());
    let etcd = Etcd::builder().members(3).host(store).start().await;
    let mesh = mesh(&etcd).network(network);
    // A client that reaches the control plane from elsewhere is not told of loopback addresses.
    (etcd, mesh, here)
}
