use std::time::Duration;

use bytes::Bytes;
use heddle_proto::store::v1::{InstanceRecord, NodeRecord};
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use sha2::{Digest as _, Sha256};

use crate::{
    names::keys,
    registry::{
        core::Registry,
        fixture::{Fixture, identity, instance, until, within},
        lease::NodeLease,
        model::NodeIdentity,
        options::{GcOptions, IdleOptions, RegistryOptions},
        view::View,
    },
    store::MAX_TXN_BYTES,
};

/// Runs often, and removes what was unused for a moment.
async fn tidy() -> Fixture {
    let gc = GcOptions {
        interval: Duration::from_millis(100),
        schemas_after: Duration::from_millis(300),
        nodes_after: Duration::from_millis(300),
        ..GcOptions::default()
    };
    let idle = IdleOptions {
        forget_after: Duration::from_millis(300),
        ..IdleOptions::default()
    };
    let options = RegistryOptions {
        lease_ttl: Duration::from_secs(600),
        gc,
        idle,
        ..RegistryOptions::default()
    };
    Fixture::with_options(tempfile::tempdir().unwrap(), options).await
}

fn descriptors(name: &str, bytes: usize) -> (String, Bytes) {
    let file = FileDescriptorProto {
        name: Some(name.to_owned()),
        package: Some("x".repeat(bytes)),
        ..FileDescriptorProto::default()
    };
    let bytes: Bytes = FileDescriptorSet { file: vec![file] }
        .encode_to_vec()
        .into();
    let sha256 = Sha256::digest(&bytes);
    let sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    (sha256, bytes)
}

async fn with_schema(registry: &Registry, node: &str, sha256: &str) -> NodeLease {
    let (key, mut local) = instance(node, "users/u1");
    local.schema_sha256 = sha256.to_owned();
    let mut lease = NodeLease::claim(registry, &identity(node, "p1"))
        .await
        .unwrap();
    let revision = lease.replace_all(vec![(key, local)]).await.unwrap();
    registry.reached(revision).await;
    lease
}

#[tokio::test]
async fn descriptors_that_a_value_does_not_hold_lie_in_parts_and_come_back_whole() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let (sha256, bytes) = descriptors("large.proto", 3 * MAX_TXN_BYTES);
    registry.keep_schema(&sha256, bytes.clone()).await.unwrap();
    registry.keep_schema(&sha256, bytes.clone()).await.unwrap();
    fixture.until(|view| view.has_schema(&sha256)).await;
    assert_eq!(registry.schema(&sha256).await, Ok(Some(bytes)));
    let found = registry.store().range(keys::SCHEMAS, None).await.unwrap();
    assert!(found.items.len() > 3, "{}", found.items.len());
    let longest = found.items.iter().map(|item| item.value.len()).max();
    assert!(longest.unwrap() <= MAX_TXN_BYTES);
    registry.read(|view| assert_eq!(view.schemas().count(), 1, "a part is no content"));
    // If a part is lost, no descriptors are returned rather than incomplete ones.
    let part = keys::schema_part(&sha256, 1);
    registry.store().delete(&part).await.unwrap();
    assert_eq!(registry.schema(&sha256).await, Ok(None));
}

#[tokio::test]
async fn descriptors_that_nobody_names_go_and_those_that_somebody_names_stay() {
    let fixture = tidy().await;
    let registry = &fixture.registry;
    let (used, used_bytes) = descriptors("used.proto", 10);
    let (unused, unused_bytes) = descriptors("unused.proto", MAX_TXN_BYTES * 2);
    // Referred to before they are stored: otherwise they would be removed if the machine stalls in between.
    let mut lease = with_schema(registry, "a", &used).await;
    registry.keep_schema(&used, used_bytes).await.unwrap();
    registry.keep_schema(&unused, unused_bytes).await.unwrap();
    // The event is part of the transaction that removes them.
    until(registry, |view| {
        let event = view.events().find(|it| it.record.kind == "schema-removed");
        event.is_some_and(|event| event.record.cause.contains(&unused))
    })
    .await;
    let held = |view: &View| view.schemas().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(registry.read(held), std::slice::from_ref(&used));
    let left = registry
        .store()
        .range_keys(keys::SCHEMAS, None)
        .await
        .unwrap();
    assert_eq!(left.items.len(), 1, "its parts are gone too");
    // The service stays known for a while, and its descriptors with it; then both are removed.
    lease.leave().await.unwrap();
    until(registry, |view| {
        view.schemas().next().is_none() && view.marked_schemas().is_empty()
    })
    .await;
    let service = crate::registry::fixture::service("users");
    assert!(registry.read(|view| view.recorded(&service).is_none()));
}

#[tokio::test]
async fn marked_descriptors_are_requested_again_and_unmarked() {
    let fixture = tidy().await;
    let registry = &fixture.registry;
    let (sha256, bytes) = descriptors("late.proto", 10);
    registry.keep_schema(&sha256, bytes.clone()).await.unwrap();
    until(registry, |view| !view.marked_schemas().is_empty()).await;
    assert!(!registry.read(|view| view.has_schema(&sha256)));
    registry.keep_schema(&sha256, bytes.clone()).await.unwrap();
    let _lease = with_schema(registry, "a", &sha256).await;
    until(registry, |view| view.has_schema(&sha256)).await;
    // A node that registers while they are marked does not notice; the next run of the collector removes the mark.
    registry
        .store()
        .put(&keys::marked_schema(&sha256), Bytes::new())
        .await
        .unwrap();
    until(registry, |view| !view.has_schema(&sha256)).await;
    until(registry, |view| view.has_schema(&sha256)).await;
    assert_eq!(registry.schema(&sha256).await, Ok(Some(bytes)));
}

#[tokio::test]
async fn parts_of_an_upload_that_broke_off_are_removed() {
    let fixture = tidy().await;
    let store = fixture.registry.store();
    let mut changes = fixture.registry.subscribe();
    store
        .put("schema/00ff/0", Bytes::from_static(b"part"))
        .await
        .unwrap();
    within(async {
        while store.get("schema/00ff/0").await.unwrap().is_some() {
            changes.next().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_that_has_gone_for_long_is_forgotten_but_not_that_its_old_process_is_old() {
    let fixture = tidy().await;
    let registry = &fixture.registry;
    for process in ["p1", "p2", "p3"] {
        let lease = NodeLease::claim(registry, &identity("a", process)).await;
        drop(lease.unwrap());
    }
    let mut third = NodeLease::claim(registry, &identity("a", "p3"))
        .await
        .unwrap();
    assert_eq!(third.epoch(), 3);
    let revision = third.leave().await.unwrap();
    registry.reached(revision).await;
    fixture.until(|view| view.node("a").is_none()).await;

    let new = NodeLease::claim(registry, &identity("a", "p4"))
        .await
        .unwrap();
    assert_eq!(new.epoch(), 4, "above all that was");
    let old = NodeIdentity {
        epoch: 3,
        ..identity("a", "p3")
    };
    let refused = NodeLease::claim(registry, &old).await.err().unwrap();
    assert!(refused.to_string().contains("p4"), "{refused}");
}

/// Issue 10, D2: a mesh's prefix may extend another's, even by the name of one of its folders. Removing unused records
/// of one mesh must not affect the other.
#[tokio::test]
async fn keys_of_a_mesh_whose_prefix_extends_this_ones_stay() {
    let fixture = tidy().await;
    let registry = &fixture.registry;
    let store = registry.store();
    let (key, local) = instance("node", "users/u1");
    let service = keys::service(&key.service);
    let record = InstanceRecord {
        node: "node".into(),
        epoch: 1,
        local: Some(local),
    };
    let node = NodeRecord {
        name: "node".into(),
        epoch: 1,
        advertise: "10.0.0.1:15008".into(),
        suspect: true,
        ..NodeRecord::default()
    };
    let inner: Vec<(String, Bytes)> = vec![
        (keys::node("node"), node.encode_to_vec().into()),
        (keys::instance(&key), record.encode_to_vec().into()),
        (service, Bytes::new()),
        (keys::schema("00ff"), Bytes::new()),
        (keys::schema_part("0f", 3), Bytes::new()),
        (keys::marked_schema("0f"), Bytes::new()),
        (keys::event("1-c1-0"), Bytes::new()),
        (keys::EPOCH_FLOOR.to_owned(), Bytes::from_static(b"7")),
    ];
    let folders = [
        keys::NODES,
        keys::INSTANCES,
        keys::SERVICES,
        keys::SCHEMAS,
        keys::MARKED_SCHEMAS,
        keys::EVENTS,
    ];
    let mut put = Vec::new();
    for folder in folders {
        for (key, value) in &inner {
            let key = format!("{folder}{key}");
            let at = store.put(&key, value.clone()).await.unwrap();
            put.push((key, at));
        }
    }
    // Names with which the inner mesh's keys begin.
    for name in ["node", "instance", "schema", "service"] {
        let mut lease = NodeLease::claim(registry, &identity(name, "p1"))
            .await
            .unwrap();
        let set = vec![instance(name, "users/u1")];
        lease.replace_all(set).await.unwrap();
        let revision = lease.leave().await.unwrap();
        registry.reached(revision).await;
    }
    // By then, this mesh's own records are added and removed again.
    fixture
        .until(|view| view.nodes().next().is_none() && view.services().next().is_none())
        .await;
    // Added after the inner mesh's keys, so it is removed after anything that the collector found with them.
    store
        .put(&keys::schema_part("00aa", 0), Bytes::new())
        .await
        .unwrap();
    let mut changes = registry.subscribe();
    within(async {
        let orphan = keys::schema_part("00aa", 0);
        while store.get(&orphan).await.unwrap().is_some() {
            changes.next().await;
        }
    })
    .await;
    for (key, at) in put {
        let found = store.get(&key).await.unwrap();
        assert_eq!(found.map(|it| it.mod_revision), Some(at), "{key}");
    }
}
