//! Several replicas on one store: a removal and a list cover the clients of all of them.

use std::{sync::Arc, time::Duration};

use heddle_control::{
    registry::{IdleOptions, Membership, Registry, RegistryOptions},
    snapshot::Kind,
    store::{Embedded, EmbeddedOptions, Store},
};
use heddle_proto::{
    control::v1::{
        AwaitRemovalRequest, InstanceRef, LocalInstance, RemovalAnswer, control_message,
        replica_client::ReplicaClient,
    },
    status::v1::{GetMeshRequest, ListProxiesRequest, ListProxiesResponse, ListServicesRequest},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    ECHO, endpoints,
    plane::{NodeSession, Plane, client, echo, proxy, within},
};

pub(crate) struct Replicas {
    pub(crate) first: Plane,
    pub(crate) second: Plane,
    store: Arc<dyn Store>,
    _folder: tempfile::TempDir,
}

impl Replicas {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::new(folder.path().join("store"));
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&options).unwrap());
        let replica = |name| Plane::replica(Arc::clone(&store), name, IdleOptions::default());
        let replicas = Self {
            first: replica("r1").await,
            second: replica("r2").await,
            store,
            _folder: folder,
        };
        replicas.know(2).await;
        replicas
    }

    /// A node with a session on the first replica; waits until the second has its instances too.
    pub(crate) async fn node(&self, name: &str, instances: Vec<LocalInstance>) -> NodeSession {
        let node = self.first.node(name, instances).await;
        self.second.has(node.revision).await;
        node
    }

    /// Waits until both replicas see this many replicas.
    async fn know(&self, count: usize) {
        for plane in [&self.first, &self.second] {
            let mut changes = plane.registry.subscribe();
            within(async {
                while plane.registry.read(|view| view.replicas().count()) != count {
                    changes.next().await;
                }
            })
            .await;
        }
    }

    /// A replica that others discover and that accepts connections but never answers.
    pub(crate) async fn add_silent(&self) -> (TcpListener, Membership, CancellationToken) {
        self.add("silent", "process of silent").await
    }

    /// A replica that others discover; the test serves its port.
    pub(crate) async fn add(
        &self,
        name: &str,
        process: &str,
    ) -> (TcpListener, Membership, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let options = RegistryOptions {
            replica: name.to_owned(),
            process_id: process.to_owned(),
            advertise: format!("http://{}", listener.local_addr().unwrap()),
            lease_ttl: Duration::from_secs(600),
            stop: stop.clone(),
            ..RegistryOptions::default()
        };
        let membership = Registry::open(Arc::clone(&self.store), options)
            .await
            .unwrap();
        self.know(3).await;
        (listener, membership, stop)
    }
}

async fn removal_answer(node: &mut NodeSession) -> RemovalAnswer {
    match node.next().await {
        control_message::Message::RemovalAnswer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// Asks until exactly these have not acknowledged. A replica that answers too late because the machine stalls is named
/// too; then it asks again.
async fn until_unacknowledged(node: &mut NodeSession, wait: Duration, expected: &str) {
    within(async {
        loop {
            node.ask_removal("1", wait).await;
            let answer = removal_answer(node).await;
            assert!(!answer.acknowledged, "{answer:?}");
            if answer.unacknowledged == [expected] {
                return;
            }
        }
    })
    .await;
}

fn two() -> Vec<LocalInstance> {
    vec![echo("1", "127.0.0.1:7001"), echo("2", "127.0.0.1:7002")]
}

#[tokio::test]
async fn a_removal_waits_for_the_clients_of_every_replica() {
    let replicas = Replicas::start().await;
    let mut node = replicas.node("a", two()).await;
    let mut user = replicas.second.delta(proxy("user")).await;
    user.subscribe(Kind::Endpoint, &[ECHO]).await;
    let first = user.next().await;
    assert_eq!(endpoints(&first), 2);
    user.ack(&first).await;

    node.change(vec![], &["1"]).await;
    let second = user.next().await;
    assert_eq!(endpoints(&second), 1);
    until_unacknowledged(&mut node, Duration::from_secs(1), "user").await;

    node.ask_removal("1", Duration::from_secs(5)).await;
    user.ack(&second).await;
    let answer = removal_answer(&mut node).await;
    assert_eq!(
        (answer.acknowledged, answer.unacknowledged.len()),
        (true, 0)
    );
}

#[tokio::test]
async fn a_silent_replica_is_named_and_one_that_has_gone_is_not_waited_for() {
    let replicas = Replicas::start().await;
    let (_listener, membership, stop) = replicas.add_silent().await;
    let mut node = replicas.node("a", two()).await;
    node.change(vec![], &["1"]).await;
    let silent = "(replica silent did not answer)";
    until_unacknowledged(&mut node, Duration::from_secs(1), silent).await;

    node.ask_removal("1", Duration::from_secs(5)).await;
    stop.cancel();
    within(membership.left()).await;
    let answer = removal_answer(&mut node).await;
    assert_eq!(answer.unacknowledged, [""; 0], "its presence has gone");
    assert!(answer.acknowledged);
}

#[tokio::test]
async fn a_replica_waits_for_a_removal_that_has_not_come_to_it_yet() {
    let replicas = Replicas::start().await;
    let mut node = replicas.node("a", two()).await;
    let now = node.change(vec![echo("3", "127.0.0.1:7003")], &[]).await;
    let mut second = ReplicaClient::new(replicas.second.channel().await);
    let question = move |revision, wait: Duration| AwaitRemovalRequest {
        node: "a".to_owned(),
        instance: Some(InstanceRef {
            service: "echo".to_owned(),
            namespace: "default".to_owned(),
            id: "1".to_owned(),
        }),
        revision,
        max_wait: Some(wait.try_into().unwrap()),
    };
    // Far ahead, because a replica also writes by itself.
    let soon = second.await_removal(question(now + 1_000_000, Duration::from_millis(50)));
    assert_eq!(
        within(soon).await.unwrap().into_inner().unacknowledged,
        ["(replica r2 has not seen the removal yet)"]
    );
    let mut asks = second.clone();
    let waiting = tokio::spawn(async move {
        let query = question(now + 1, Duration::from_secs(5));
        let answer = asks.await_removal(query).await;
        answer.unwrap().into_inner().unacknowledged
    });
    node.change(vec![], &["1"]).await;
    assert_eq!(within(waiting).await.unwrap(), [""; 0]);

    let mut bad = question(now, Duration::ZERO);
    bad.instance = None;
    let refused = second.await_removal(bad).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
}

/// The clients of all replicas except those that do not answer. Asked again while other replicas answer too late.
async fn proxies(plane: &Plane, without: &[&str]) -> ListProxiesResponse {
    let mut status = plane.status().await;
    within(async {
        loop {
            let answer = status.list_proxies(ListProxiesRequest {}).await;
            let answer = answer.unwrap().into_inner();
            if answer.unanswered == without {
                return answer;
            }
        }
    })
    .await
}

#[tokio::test]
async fn lists_are_of_all_replicas_and_name_those_that_do_not_answer() {
    let replicas = Replicas::start().await;
    let _node = replicas.node("a", two()).await;
    let mut streams = Vec::new();
    for (plane, id) in [(&replicas.first, "on-r1"), (&replicas.second, "on-r2")] {
        let mut stream = plane.delta(client(id, &[])).await;
        stream.subscribe(Kind::Cluster, &[]).await;
        stream.next().await;
        streams.push(stream);
    }
    for plane in [&replicas.first, &replicas.second] {
        let answer = proxies(plane, &[]).await;
        let seen: Vec<_> = answer
            .proxies
            .iter()
            .map(|each| (each.node_id.as_str(), each.replica.as_str()))
            .collect();
        assert_eq!(seen, [("on-r1", "r1"), ("on-r2", "r2")]);
    }

    let (_listener, _registry, _stop) = replicas.add_silent().await;
    let answer = proxies(&replicas.second, &["silent"]).await;
    assert_eq!(answer.proxies.len(), 2, "the others are there all the same");

    let mut status = replicas.second.status().await;
    let mesh = status
        .get_mesh(GetMeshRequest {})
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = mesh.replicas.iter().map(|each| &*each.name).collect();
    assert_eq!(names, ["r1", "r2", "silent"]);
    assert_eq!(mesh.replica, "r2");
    assert_eq!(mesh.replicas[0].advertise, replicas.first.address);
    assert_eq!(mesh.nodes[0].replica, "r1", "its session is there");

    let mut services = Vec::new();
    for plane in [&replicas.first, &replicas.second] {
        let mut status = plane.status().await;
        let answer = status.list_services(ListServicesRequest::default()).await;
        services.push(answer.unwrap().into_inner());
    }
    assert_eq!(services[0], services[1]);
    assert_eq!(services[0].services[0].name, ECHO);
}
