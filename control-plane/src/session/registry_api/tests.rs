use heddle_proto::registry::v1::registry_client::RegistryClient;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use super::{
    super::fixture::{RecordedQueries, serve},
    *,
};
use crate::{
    names::InstanceKey,
    registry::{
        NodeLease, NodeWrite,
        fixture::{Fixture, identity, instance, within},
    },
};

async fn start() -> (Fixture, RegistryClient<Channel>) {
    let fixture = Fixture::new().await;
    let server = serve(&fixture.registry, &Arc::new(RecordedQueries::default())).await;
    let client = RegistryClient::connect(format!("http://{server}"))
        .await
        .unwrap();
    (fixture, client)
}

async fn node(fixture: &Fixture, node: &str, names: &[&str]) -> NodeLease {
    let mut lease = NodeLease::claim(&fixture.registry, &identity(node, "p1"))
        .await
        .unwrap();
    let set = names.iter().map(|name| instance(node, name)).collect();
    let revision = lease.replace_all(set).await.unwrap();
    fixture.registry.reached(revision).await;
    lease
}

async fn change(fixture: &Fixture, lease: &mut NodeLease, write: NodeWrite) {
    let revision = lease.change(vec![write]).await.unwrap();
    fixture.registry.reached(revision).await;
}

fn draining(node: &str, name: &str) -> NodeWrite {
    let (key, mut local) = instance(node, name);
    local.set_health(Health::Draining);
    NodeWrite::Put(key, Box::new(local))
}

fn key(node: &str, name: &str) -> InstanceKey {
    instance(node, name).0
}

fn lines(instances: &[InstanceStatus]) -> Vec<String> {
    let line = |status: &InstanceStatus| {
        let it = status.instance.as_ref().unwrap();
        let health = status.health().as_str_name().trim_start_matches("HEALTH_");
        format!(
            "{}/{}.{}/{} {health}",
            status.node, it.service, it.namespace, it.id
        )
    };
    instances.iter().map(line).collect()
}

#[tokio::test]
async fn lists_are_sorted_and_filtered() {
    let (fixture, mut client) = start().await;
    let mut b = node(&fixture, "b", &["users/u1", "users.shop/u1"]).await;
    node(&fixture, "a", &["users/u2", "echo/e1"]).await;
    change(&fixture, &mut b, draining("b", "users/u1")).await;

    let services = client
        .list_services(ListServicesRequest {})
        .await
        .unwrap()
        .into_inner()
        .services;
    let line = |it: &pb::Service| {
        format!(
            "{} {:?} {}/{}",
            it.name, it.protos, it.healthy_instances, it.instances
        )
    };
    assert_eq!(
        services.iter().map(line).collect::<Vec<_>>(),
        [
            "echo.default [\"echo.v1.Api\"] 1/1",
            "users.default [\"users.v1.Api\"] 1/2",
            "users.shop [\"users.v1.Api\"] 1/1",
        ]
    );
    let mut list = async |service: &str| {
        let request = ListInstancesRequest {
            service: service.into(),
        };
        Ok::<_, Status>(lines(
            &client.list_instances(request).await?.into_inner().instances,
        ))
    };
    let users = ["b/users.default/u1 DRAINING", "a/users.default/u2 HEALTHY"];
    assert_eq!(list("users").await.unwrap(), users);
    assert_eq!(list("users.default").await.unwrap(), users);
    assert_eq!(list("").await.unwrap().len(), 4);
    assert_eq!(list("nobody").await.unwrap(), [""; 0]);
    let status = list("a.b.c").await.unwrap_err();
    assert!(
        status.message().starts_with("service: \"a.b.c\""),
        "{status}"
    );
}

#[tokio::test]
async fn registration_is_refused_with_the_place_to_go_to() {
    let (_fixture, mut client) = start().await;
    let check = |status: Status| {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("127.0.0.1:15002"), "{status}");
        assert_eq!(
            status.get_details_error_info().unwrap().reason,
            "REGISTER_WITH_THE_AGENT"
        );
    };
    check(
        client
            .register(RegisterRequest::default())
            .await
            .unwrap_err(),
    );
    check(
        client
            .deregister(DeregisterRequest::default())
            .await
            .unwrap_err(),
    );
    check(
        client
            .keep_alive(futures_util::stream::empty())
            .await
            .unwrap_err(),
    );
}

#[tokio::test]
async fn a_watch_gives_what_is_there_then_every_change() {
    let (fixture, mut client) = start().await;
    let mut a = node(&fixture, "a", &["users/u1", "users/u2", "echo/e1"]).await;
    let request = WatchInstancesRequest {
        service: "users".into(),
    };
    let mut watch = client.watch_instances(request).await.unwrap().into_inner();
    let mut next = async || within(watch.message()).await.unwrap().unwrap();

    let first = next().await;
    assert!(first.initial_done);
    assert_eq!(
        lines(&first.changed),
        ["a/users.default/u1 HEALTHY", "a/users.default/u2 HEALTHY"]
    );
    change(&fixture, &mut a, draining("a", "users/u1")).await;
    let second = next().await;
    assert_eq!(
        lines(&second.changed),
        ["a/users.default/u1 DRAINING"],
        "only what changed"
    );
    assert!(!second.initial_done);
    change(
        &fixture,
        &mut a,
        NodeWrite::Remove(key("a", "echo/e1"), None),
    )
    .await;
    change(
        &fixture,
        &mut a,
        NodeWrite::Remove(key("a", "users/u1"), None),
    )
    .await;
    let third = next().await;
    assert_eq!(
        (third.changed.len(), third.removed),
        (0, vec!["a/users.default/u1".to_owned()])
    );

    let request = WatchInstancesRequest {
        service: "nobody".into(),
    };
    let mut empty = client.watch_instances(request).await.unwrap().into_inner();
    let first = within(empty.message()).await.unwrap().unwrap();
    assert_eq!((first.initial_done, first.changed.len()), (true, 0));
}
