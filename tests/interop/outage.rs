//! The control plane is down for ten seconds, stopped with SIGTERM or killed, while stock xDS clients call: no call
//! fails, and afterwards they get updates again. The clients and how they are started are given by the caller.

use std::time::{Duration, Instant};

use heddle_proto::status::v1::ListProxiesRequest;
use heddle_tests::echo::{channel, reach};
use heddle_tests::envoy::Envoy;
use heddle_tests::load::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::stock::Client;
use heddle_tests::wait::{seen, within};
use tonic::transport::Channel;

const AWAY: Duration = Duration::from_secs(10);

/// A client reconnects by its back-off, which has grown while the control plane was down: Envoy's is up to 2 s
/// (its bootstrap), gRPC's goes 1, 1.6, 2.6, 4.1, 6.6, 10.5 s. grpc-go has two of them, one for the connection and one for
/// the stream on it, and where the stream's ends just before the connection is there it waits a whole turn more: some
/// 16 s after ten without a control plane. More than a turn beyond that, for a slow machine.
const BACK_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls of each client that are awaited before, during and after. How many more there are depends on the machine.
const AT_LEAST: usize = 60;

/// How the control plane stops.
#[derive(Clone, Copy)]
pub(crate) enum Loss {
    Stopped,
    Killed,
}

/// A stock client whose calls are all recorded.
pub(crate) enum Caller {
    /// It makes calls itself.
    Grpc(Client),
    /// Calls go through it.
    Envoy {
        envoy: Envoy,
        calls: Channel,
        load: Load,
    },
}

impl Caller {
    /// No call through it may fail from now on, when it reaches these.
    pub(crate) async fn envoy(envoy: Envoy, ids: &[&str]) -> Self {
        let calls = channel(envoy.listen);
        reach(&calls, ids).await;
        let load = Load::start(&Plan::new(Kind::Unsafe, &[envoy.listen]));
        Self::Envoy { envoy, calls, load }
    }

    fn node_id(&self) -> String {
        match self {
            Self::Grpc(client) => client.node_id(),
            Self::Envoy { envoy, .. } => envoy.node_id(),
        }
    }

    async fn reaches(&self, ids: &[&str]) {
        match self {
            Self::Grpc(client) => client.reaches(ids).await,
            Self::Envoy { calls, .. } => reach(calls, ids).await,
        }
    }

    async fn more(&self, count: usize) {
        match self {
            Self::Grpc(client) => client.more(count).await,
            Self::Envoy { load, .. } => load.more(count).await,
        }
    }

    /// Asserts that none has failed.
    async fn finish(self) {
        match self {
            Self::Grpc(client) => assert!(client.calls().len() >= AT_LEAST),
            Self::Envoy { load, .. } => load.finish().await.assert_none_failed(AT_LEAST),
        }
    }
}

/// One node with the instances e0 and e1: what callers find.
pub(crate) async fn mesh() -> Mesh {
    let mut mesh = Mesh::builder().start().await;
    for id in ["e0", "e1"] {
        mesh.echo("a", id).await;
    }
    mesh
}

/// Takes a mesh as above and callers that reach its two instances.
pub(crate) async fn costs_no_call(mut mesh: Mesh, callers: Vec<Caller>, losses: &[Loss]) {
    all_reach(&callers, &["e0", "e1"]).await;
    follow(&mut mesh, &callers, 0).await;
    for (loss, round) in losses.iter().zip(1..) {
        match loss {
            Loss::Stopped => mesh.stop_control().await,
            Loss::Killed => mesh.kill_control().await,
        }
        let there = [round, round + 1].map(|n| format!("e{n}"));
        let there = there.each_ref().map(String::as_str);
        let end = Instant::now() + AWAY;
        while Instant::now() < end {
            all_go_on(&callers).await;
        }
        all_reach(&callers, &there).await;

        returns(&mut mesh, &there).await;
        for caller in &callers {
            is_back(&mesh, &caller.node_id()).await;
        }
        all_reach(&callers, &there).await;
        follow(&mut mesh, &callers, round).await;
    }
    for caller in callers {
        caller.finish().await;
    }
}

/// The first answers come from the store alone, because the node is frozen. Only so an empty store is certain to be noticed:
/// running nodes reconnect before most clients, and state-of-the-world clients send the revision that they have seen and get
/// nothing older (docs/xds.md, *Versions*), so they would call on as if the control plane were still down. A delta client
/// cannot send it, so only Envoy would lose calls, and only if it reconnected before the node.
async fn returns(mesh: &mut Mesh, there: &[&str]) {
    mesh.node("a").proxy().signal("STOP");
    mesh.start_control().await;
    mesh.control_has(there).await;
    mesh.node("a").proxy().signal("CONT");
}

async fn is_back(mesh: &Mesh, node_id: &str) {
    let what = format!("{node_id} comes back to the control plane");
    within(BACK_TIMEOUT, &what, async || {
        let answer = mesh.status().list_proxies(ListProxiesRequest {}).await;
        let clients = answer.map_err(|status| status.to_string())?.into_inner();
        let ids: Vec<_> = clients.proxies.iter().map(|one| &one.node_id).collect();
        seen(ids.iter().any(|id| *id == node_id), format!("{ids:?}"))
    })
    .await;
}

/// A new instance is reached by all, a removed one by none.
async fn follow(mesh: &mut Mesh, callers: &[Caller], round: usize) {
    let [oldest, stays, new] = [round, round + 1, round + 2].map(|n| format!("e{n}"));
    mesh.echo("a", &new).await;
    all_reach(callers, &[&oldest, &stays, &new]).await;
    mesh.stop_instance("a", &oldest).await;
    all_reach(callers, &[&stays, &new]).await;
    all_go_on(callers).await;
}

async fn all_reach(callers: &[Caller], ids: &[&str]) {
    for caller in callers {
        caller.reaches(ids).await;
    }
}

async fn all_go_on(callers: &[Caller]) {
    for caller in callers {
        caller.more(20).await;
    }
}
