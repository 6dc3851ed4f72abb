use std::{collections::BTreeSet, time::Duration};

use heddle_proto::{control::v1::ProtoService, store::v1::ServiceRecord};

use super::*;
use crate::registry::{
    fixture::{Fixture, identity, instance, names, service},
    lease::{NodeLease, NodeWrite},
    options::{IdleOptions, RegistryOptions},
    view::View,
};

async fn node(registry: &Registry, name: &str) -> NodeLease {
    NodeLease::claim(registry, &identity(name, "p1"))
        .await
        .unwrap()
}

async fn set(lease: &mut NodeLease, registry: &Registry, instances: &[&str]) {
    let node = lease.node().to_owned();
    let set = instances.iter().map(|name| instance(&node, name));
    let revision = lease.replace_all(set.collect()).await.unwrap();
    registry.reached(revision).await;
}

fn known(view: &View) -> Vec<String> {
    view.services().map(ToString::to_string).collect()
}

fn protos(view: &View, name: &str) -> Vec<String> {
    let known = view.stands_in(&service(name));
    known.map_or(vec![], |known| {
        known.protos.iter().map(|it| it.name.clone()).collect()
    })
}

fn forgets_after(forget_after: Duration, at_most: usize) -> RegistryOptions {
    RegistryOptions {
        idle: IdleOptions {
            forget_after,
            at_most,
        },
        ..RegistryOptions::default()
    }
}

#[tokio::test]
async fn a_service_stays_known_without_instances_and_across_a_restart() {
    let fixture = Fixture::new().await;
    let registry = fixture.registry.clone();
    let mut lease = node(&registry, "a").await;
    set(&mut lease, &registry, &["users/u1", "shop/s1"]).await;
    let mut changes = registry.subscribe();
    set(&mut lease, &registry, &["shop/s1"]).await;
    assert_eq!(
        changes.next().await.services,
        BTreeSet::from([service("users")])
    );
    registry.read(|view| {
        assert_eq!(names(view), ["a/shop.default/s1"]);
        assert_eq!(known(view), ["shop.default", "users.default"]);
        assert_eq!(protos(view, "users"), ["users.v1.Api"]);
        let claims = view.path_claimants("users.v1.Api").map(|it| it.service);
        assert_eq!(claims.collect::<Vec<_>>(), [&service("users")]);
    });
    lease.leave().await.unwrap();
    drop(lease);
    drop(registry);

    let folder = fixture.close().await;
    let fixture = Fixture::open(folder, Duration::from_secs(600)).await;
    fixture.registry.read(|view| {
        assert_eq!(names(view), [""; 0]);
        assert_eq!(known(view), ["shop.default", "users.default"]);
        assert_eq!(protos(view, "users"), ["users.v1.Api"]);
    });
}

#[tokio::test]
async fn who_has_had_no_instance_for_long_is_forgotten_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let options = forgets_after(Duration::from_millis(300), 1000);
    let fixture = Fixture::with_options(folder, options).await;
    let registry = &fixture.registry;
    let mut lease = node(registry, "a").await;
    set(&mut lease, registry, &["users/u1", "shop/s1"]).await;
    set(&mut lease, registry, &["shop/s1"]).await;
    fixture.until(|view| known(view) == ["shop.default"]).await;
    let left = registry.store().range(keys::SERVICES, None).await.unwrap();
    assert_eq!(left.items.len(), 1, "its record is gone from the store");
}

#[tokio::test]
async fn of_too_many_empty_services_the_oldest_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let options = forgets_after(Duration::from_secs(3600), 2);
    let fixture = Fixture::with_options(folder, options).await;
    let registry = &fixture.registry;
    let mut lease = node(registry, "a").await;
    let all = ["d/1", "c/1", "b/1", "a/1"];
    set(&mut lease, registry, &all).await;
    for left in 1..=all.len() {
        set(&mut lease, registry, &all[left..]).await;
    }
    let two = ["a.default", "b.default"];
    fixture.until(|view| known(view) == two).await;
}

#[tokio::test]
async fn a_service_that_is_used_again_is_not_forgotten_by_who_looked_before() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut lease = node(registry, "a").await;
    set(&mut lease, registry, &["users/u1"]).await;
    set(&mut lease, registry, &[]).await;
    // Single-threaded: the view does not include the write before this task waits for it.
    let users = service("users");
    let at = registry.read(|view| view.empty_since_write(&users).unwrap());
    let set = vec![instance("a", "users/u2")];
    let revision = lease.replace_all(set).await.unwrap();
    let compare = vec![Compare::unchanged("service/users.default", at)];
    let late = registry.txn_of_leader(
        fixture.fencing_token(),
        compare,
        vec![Op::delete("service/users.default")],
        &[],
    );
    assert!(!late.await.unwrap());
    registry.reached(revision).await;
    forget(
        registry,
        fixture.fencing_token(),
        std::slice::from_ref(&users),
    )
    .await
    .unwrap();
    assert!(registry.read(|view| view.recorded(&users).is_some()));
}

#[tokio::test]
async fn a_missing_record_is_written() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut lease = node(registry, "a").await;
    set(&mut lease, registry, &["users/u1"]).await;
    // Like a store that a version without such records wrote.
    registry
        .store()
        .delete("service/users.default")
        .await
        .unwrap();
    drop(lease);
    let fixture = Fixture::open(fixture.close().await, Duration::from_secs(600)).await;
    let users = service("users");
    fixture.until(|view| view.recorded(&users).is_some()).await;
    let record = fixture.registry.store().get("service/users.default").await;
    let record = ServiceRecord::decode(record.unwrap().unwrap().value).unwrap();
    assert_eq!(record.protos[0].name, "users.v1.Api");
    assert_eq!(record.protos[0].idempotent_methods, ["Get"]);
}

#[tokio::test]
async fn the_record_follows_who_says_something_new() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut lease = node(registry, "a").await;
    let put = |id: &str, proto: Option<&str>, reason: &str| {
        let (key, mut local) = instance("a", &format!("users/{id}"));
        local.protos = proto
            .map(|name| ProtoService {
                name: name.to_owned(),
                ..ProtoService::default()
            })
            .into_iter()
            .collect();
        local.health_reason = reason.to_owned();
        NodeWrite::Put(key, Box::new(local))
    };
    let steps = [
        (put("old", Some("v1.Users"), ""), "v1.Users"),
        (put("new", Some("v2.Users"), ""), "v2.Users"),
        // Only its health changed.
        (put("old", Some("v1.Users"), "slow"), "v2.Users"),
        // It has not been asked yet.
        (put("third", None, ""), "v2.Users"),
        (put("old", Some("v3.Users"), ""), "v3.Users"),
    ];
    for (step, wanted) in steps {
        let revision = lease.change(vec![step]).await.unwrap();
        registry.reached(revision).await;
        let recorded = registry.read(|view| view.recorded(&service("users")).cloned());
        let names = recorded.unwrap().protos.into_iter().map(|it| it.name);
        assert_eq!(names.collect::<Vec<_>>(), [wanted]);
    }
}

#[tokio::test]
async fn an_instance_without_known_protos_leaves_the_service_its_protos() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut lease = node(registry, "a").await;
    set(&mut lease, registry, &["users/u1"]).await;
    set(&mut lease, registry, &[]).await;
    let (key, mut local) = instance("a", "users/u2");
    local.protos.clear();
    let write = vec![NodeWrite::Put(key, Box::new(local))];
    let revision = lease.change(write).await.unwrap();
    registry.reached(revision).await;
    registry.read(|view| {
        assert_eq!(names(view), ["a/users.default/u2"]);
        assert_eq!(protos(view, "users"), ["users.v1.Api"]);
        assert_eq!(view.path_claimants("users.v1.Api").count(), 1);
    });
}
