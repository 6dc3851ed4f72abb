use std::{sync::Arc, time::Duration};

use heddle_proto::{control::v1 as control, registry::v1::Instance};
use prost::bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{LocalNode, TableBuilder, join::merge_protos};
use crate::{
    agent::{
        Agent,
        validate::{Origin, check},
    },
    balance::endpoints::{Health, Target},
    route::{ProtoService, Rank, RouteTable, table::Claim},
    xds::{self, Assignment, Cluster, Index, Remote},
};

fn own(agent: &Agent, service: &str, id: &str, address: &str, protos: &[&str]) -> Arc<str> {
    let instance = Instance {
        service: service.into(),
        id: id.into(),
        address: address.into(),
        protos: protos.iter().map(|&p| p.to_owned()).collect(),
        ..Instance::default()
    };
    let checked = check(instance, &Bytes::new(), Origin::Registration, &|_| true);
    agent.register(checked.unwrap()).unwrap()
}

fn remote(node: &str, id: &str, inbound: &str) -> Remote {
    Remote {
        id: id.into(),
        node: node.into(),
        version: "v1".into(),
        address: "10.0.0.9:1".parse().unwrap(),
        inbound: inbound.parse().unwrap(),
        region: "".into(),
        zone: "".into(),
        weight: 1,
        health: Health::Healthy,
    }
}

fn view(clusters: Vec<(&str, Vec<Remote>, &[&str])>) -> Arc<xds::View> {
    let clusters = clusters.into_iter().map(|(name, endpoints, protos)| {
        let protos = protos.iter().map(|&name| ProtoService {
            name: name.into(),
            ..Default::default()
        });
        let index = Index {
            protos: protos.collect(),
            ..Index::default()
        };
        let assignment = Some(Arc::new(Assignment { endpoints }));
        (
            name.to_owned(),
            Cluster {
                assignment,
                index: Some(Arc::new(index)),
            },
        )
    });
    Arc::new(xds::View {
        clusters: clusters.collect(),
        complete: true,
    })
}

struct Fixture {
    agent: Agent,
    xds: watch::Sender<Arc<xds::View>>,
    mesh: watch::Receiver<super::Mesh>,
    published: mpsc::UnboundedReceiver<Arc<RouteTable>>,
}

impl Fixture {
    fn new() -> Self {
        Self::start(None)
    }

    fn start(forget_after: Option<Duration>) -> Self {
        let agent = Agent::new("a");
        let xds = watch::Sender::new(Arc::new(xds::View::default()));
        let local_node = LocalNode {
            node: "a".into(),
            own_names: vec![],
            region: String::new(),
            zone: String::new(),
        };
        let (mut builder, mesh) = TableBuilder::new(local_node, agent.clone(), xds.subscribe());
        if let Some(forget_after) = forget_after {
            builder.joiner.known.forget_after = forget_after;
        }
        let (publish, published) = mpsc::unbounded_channel();
        tokio::spawn(builder.run(move |table| publish.send(table).unwrap()));
        Self {
            agent,
            xds,
            mesh,
            published,
        }
    }

    async fn next(&mut self) -> Arc<RouteTable> {
        let next = tokio::time::timeout(Duration::from_secs(60), self.published.recv());
        next.await.expect("a table in time").unwrap()
    }
}

fn targets(table: &RouteTable, service: &str) -> Vec<Target> {
    let service = table.service(service);
    service.map_or(vec![], |s| {
        s.endpoints.endpoints.iter().map(|e| e.target).collect()
    })
}

#[tokio::test]
async fn own_instances_are_the_agents_and_all_others_are_xds() {
    let mut fixture = Fixture::new();
    fixture.next().await;
    own(&fixture.agent, "echo", "e1", "127.0.0.1:21001", &["e.Echo"]);
    let table = fixture.next().await;
    let local = Target::Local("127.0.0.1:21001".parse().unwrap());
    assert_eq!(targets(&table, "echo.default"), [local]);
    assert!(table.proto_services().any(|p| p == "e.Echo"));

    // The control plane's view of this node's instances is always older, so it is ignored.
    let echo = vec![
        remote("a", "gone", "10.0.0.1:15008"),
        remote("b", "e9", "10.0.0.2:15008"),
    ];
    fixture.xds.send_replace(view(vec![
        ("echo.default", echo, &["e.Echo"]),
        ("far.shop", vec![], &["f.Far"]),
    ]));
    let table = fixture.next().await;
    let far = Target::Node("10.0.0.2:15008".parse().unwrap());
    assert_eq!(targets(&table, "echo.default"), [far, local]);
    assert_eq!(targets(&table, "far.shop"), []);
    assert!(
        table.service("far.shop").is_some(),
        "a service without instances is known"
    );
}

#[tokio::test]
async fn equal_content_is_no_new_table_and_numbers_stay() {
    let mut fixture = Fixture::new();
    fixture.next().await;
    own(&fixture.agent, "echo", "e1", "127.0.0.1:21001", &["e.Echo"]);
    let first = fixture.next().await;
    let uid = first.service("echo.default").unwrap().endpoints.endpoints[0].uid;
    let locals = Arc::clone(
        &fixture
            .mesh
            .wait_for(|m| m.swaps == 2)
            .await
            .unwrap()
            .locals,
    );
    assert_eq!(locals.get(&uid).unwrap().id, "e1");

    // The same process registers again because its stream broke: a new registration, the same endpoint.
    own(&fixture.agent, "echo", "e1", "127.0.0.1:21001", &["e.Echo"]);
    let (version, _) = fixture.agent.views();
    fixture
        .mesh
        .wait_for(|m| m.agent_version == version)
        .await
        .unwrap();
    assert!(
        fixture.published.try_recv().is_err(),
        "equal content was published again"
    );

    own(&fixture.agent, "echo", "e2", "127.0.0.1:21002", &["e.Echo"]);
    let second = fixture.next().await;
    let endpoints = &second.service("echo.default").unwrap().endpoints.endpoints;
    assert_eq!(
        endpoints
            .iter()
            .filter(|e| e.uid == uid && &*e.id == "e1")
            .count(),
        1
    );
    assert_eq!(endpoints.len(), 2);
}

#[tokio::test]
async fn a_table_is_ready_once_the_control_plane_has_sent_all() {
    let mut fixture = Fixture::new();
    assert!(!fixture.next().await.is_ready());
    own(&fixture.agent, "echo", "e1", "127.0.0.1:21001", &["e.Echo"]);
    let table = fixture.next().await;
    assert!(!table.is_ready() && table.service("echo.default").is_some());
    fixture.xds.send_replace(view(vec![]));
    assert!(fixture.next().await.is_ready());
}

#[tokio::test]
async fn what_is_not_held_has_own_instances_only_and_says_so() {
    let mut fixture = Fixture::new();
    fixture.next().await;
    own(&fixture.agent, "echo", "e1", "127.0.0.1:21001", &[]);
    let table = fixture.next().await;
    let echo = |table: &RouteTable| Arc::clone(table.service("echo.default").unwrap());
    assert!(
        echo(&table).endpoints_known,
        "nobody else is known to have any"
    );
    let others = || vec![remote("b", "e2", "10.0.0.2:15008")];
    let known = |held: bool| {
        let mut all = view(vec![("echo.default", others(), &["e.Echo"])]);
        let of = Arc::get_mut(&mut all)
            .unwrap()
            .clusters
            .get_mut("echo.default")
            .unwrap();
        of.assignment = of.assignment.take().filter(|_| held);
        all
    };
    let local = Target::Local("127.0.0.1:21001".parse().unwrap());
    let node = Target::Node("10.0.0.2:15008".parse().unwrap());
    for (held, expect) in [
        (false, vec![local]),
        (true, vec![node, local]),
        (false, vec![local]),
    ] {
        fixture.xds.send_replace(known(held));
        let table = fixture.next().await;
        assert_eq!(
            (
                echo(&table).endpoints_known,
                targets(&table, "echo.default")
            ),
            (held, expect)
        );
        assert!(matches!(table.claim("e.Echo", "default"), Claim::One(_)));
    }
}

#[tokio::test]
async fn a_service_whose_last_own_instance_went_stays_known_for_its_time() {
    let forget_after = Duration::from_millis(500);
    let mut fixture = Fixture::start(Some(forget_after));
    fixture.next().await;
    let registration = own(&fixture.agent, "echo", "e1", "127.0.0.1:21001", &["e.Echo"]);
    fixture.next().await;
    let went = tokio::time::Instant::now();
    fixture.agent.deregister(&registration).unwrap();
    let table = fixture.next().await;
    assert!(table.service("echo.default").is_some());
    assert_eq!(targets(&table, "echo.default"), []);
    let claim = table.claim("e.Echo", "default");
    assert!(
        matches!(claim, Claim::One(echo) if &*echo.name == "echo.default"),
        "a call finds it by path"
    );

    let table = fixture.next().await;
    assert!(table.service("echo.default").is_none());
    assert!(went.elapsed() >= forget_after);
}

#[test]
fn a_method_is_idempotent_only_if_every_instance_says_so() {
    let serves = |methods: &[&str]| control::ProtoService {
        name: "e.Echo".into(),
        idempotent_methods: methods.iter().map(|&m| m.to_owned()).collect(),
    };
    let mut protos = Vec::new();
    merge_protos(&mut protos, &[serves(&["Get", "List"])], |_| None);
    merge_protos(&mut protos, &[serves(&["Get", "Put"])], |_| None);
    assert_eq!(protos.len(), 1);
    assert_eq!(protos[0].idempotent_methods, ["Get"]);
}

/// The service that gets the calls of `u.Users` by path.
fn by_path(table: &RouteTable) -> String {
    match table.claim("u.Users", "default") {
        Claim::None => "nobody".to_owned(),
        Claim::One(service) => service.name.to_string(),
        Claim::Many(several) => format!("{} services", several.len()),
    }
}

/// Issue 10, B2: without a control plane the first to register owns the path, whatever its name.
#[tokio::test]
async fn with_no_control_plane_the_oldest_registration_owns_the_path() {
    let mut fixture = Fixture::new();
    fixture.next().await;
    let first = own(
        &fixture.agent,
        "users",
        "u1",
        "127.0.0.1:21001",
        &["u.Users"],
    );
    fixture.next().await;
    own(
        &fixture.agent,
        "a-canary",
        "c1",
        "127.0.0.1:21002",
        &["u.Users"],
    );
    assert_eq!(by_path(&*fixture.next().await), "users.default");
    // An upgrade keeps the ownership; meanwhile the other service gets the calls.
    fixture.agent.deregister(&first).unwrap();
    assert_eq!(by_path(&*fixture.next().await), "a-canary.default");
    own(
        &fixture.agent,
        "users",
        "u2",
        "127.0.0.1:21003",
        &["u.Users"],
    );
    assert_eq!(by_path(&*fixture.next().await), "users.default");
}

/// Issue 10, B2: the control plane's last claims come before those that only this node knows.
#[tokio::test]
async fn a_claim_of_the_control_plane_comes_before_those_of_this_node() {
    let mut fixture = Fixture::new();
    fixture.next().await;
    own(
        &fixture.agent,
        "users",
        "u1",
        "127.0.0.1:21001",
        &["u.Users"],
    );
    assert_eq!(by_path(&*fixture.next().await), "users.default");
    let update = |claims: &[(&str, Option<Rank>)]| {
        let clusters = claims.iter().map(|(name, claim)| {
            let proto = ProtoService {
                name: "u.Users".into(),
                claim: *claim,
                ..ProtoService::default()
            };
            let index = Index {
                protos: vec![proto],
                ..Index::default()
            };
            let endpoints = vec![remote("b", "o1", "10.0.0.2:15008")];
            let cluster = Cluster {
                assignment: Some(Arc::new(Assignment { endpoints })),
                index: Some(Arc::new(index)),
            };
            ((*name).to_owned(), cluster)
        });
        Arc::new(xds::View {
            clusters: clusters.collect(),
            complete: true,
        })
    };
    let since = |revision| Some(Rank::Since(revision));
    fixture
        .xds
        .send_replace(update(&[("other.default", since(9))]));
    assert_eq!(by_path(&*fixture.next().await), "other.default");
    let both = update(&[("other.default", since(9)), ("users.default", since(7))]);
    fixture.xds.send_replace(both);
    assert_eq!(by_path(&*fixture.next().await), "users.default");
    fixture.xds.send_replace(update(&[("other.default", None)]));
    assert_eq!(
        by_path(&*fixture.next().await),
        "users.default",
        "it claims no paths"
    );
    // An older control plane sends no claims.
    let unordered = Some(Rank::Unordered);
    let older = update(&[("other.default", unordered), ("users.default", unordered)]);
    fixture.xds.send_replace(older);
    assert_eq!(by_path(&*fixture.next().await), "2 services");
}
