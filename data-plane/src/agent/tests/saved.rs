use std::fs;

use heddle_proto::registry::v1::{Health, Instance};
use prost::bytes::Bytes;

use super::{instance, until};
use crate::{
    agent::{
        Agent,
        removal_log::Cause,
        saved,
        validate::{Origin, check},
    },
    state_dir::StateDir,
};

#[tokio::test]
async fn a_proxy_that_starts_begins_with_what_it_had() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    tokio::spawn(saved::keep(dir.clone(), before.clone()));
    let set = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let unnamed = Instance {
        protos: vec![],
        ..instance("echo", "e1", "127.0.0.1:7001")
    };
    let checked = check(unnamed, &set, Origin::Registration, &|_| true).unwrap();
    let registration = before.register(checked).unwrap();
    saved::save(&dir, &before).await;

    let after = Agent::new("a");
    after.restore(saved::load(&dir, "a"));
    let (_, views) = after.views();
    let view = views.values().next().expect("it is served at once");
    assert_eq!((view.health, view.address.port()), (Health::Healthy, 7001));
    assert!(view.protos.iter().any(|p| p.name == "heddle.echo.v1.Echo"));
    assert_eq!(view.schema.as_ref().unwrap().bytes, set, "byte for byte");
    // It may just continue to beat: its registration is still valid.
    let stream = after.stream_opened(&registration).expect("still known");
    after.stream_closed(&registration, stream, Cause::StreamBroke);
    until(
        &after,
        "gone for good",
        crate::agent::instance_table::Views::is_empty,
    )
    .await;
}

#[tokio::test]
async fn what_is_not_this_nodes_is_set_aside() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    before
        .register(super::checked(instance("echo", "e1", "127.0.0.1:7001")))
        .unwrap();
    saved::save(&dir, &before).await;
    assert!(saved::load(&dir, "b").instances.is_empty());
    dir.write("instances", b"\xff\xff no message").unwrap();
    assert!(saved::load(&dir, "a").instances.is_empty());
    let aside = fs::read_dir(temp.path()).unwrap().filter_map(Result::ok);
    let aside = aside
        .filter(|e| e.file_name().to_string_lossy().contains(".bad-"))
        .count();
    assert!(aside >= 1, "kept for a person to look at");
}

/// Whatever the bytes are, the proxy starts, with some of its instances or none.
#[tokio::test]
async fn a_value_mangled_at_any_byte_is_no_crash() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    for id in ["e1", "e2"] {
        before
            .register(super::checked(instance("echo", id, "127.0.0.1:7001")))
            .unwrap();
    }
    saved::save(&dir, &before).await;
    let whole = dir.read("instances").unwrap();
    let cut = (0..whole.len()).map(|at| whole[..at].to_vec());
    let changed = (0..whole.len()).flat_map(|at| {
        [0x00, 0x01, 0x7f, 0x80, 0xff].map(|byte| {
            let mut bad = whole.to_vec();
            bad[at] ^= byte;
            bad
        })
    });
    let mut served = 0;
    for bad in cut.chain(changed) {
        let after = Agent::new("a");
        after.restore(saved::parse(&dir, bad.into(), "a"));
        served += usize::from(!after.views().1.is_empty());
    }
    assert!(served > 0, "the whole one at least");
    // The same registration twice is one instance.
    let twice = [&whole[..], &whole[..]].concat();
    let after = Agent::new("a");
    after.restore(saved::parse(&dir, twice.into(), "a"));
    assert_eq!(after.views().1.len(), 2);
}

/// Issue 10, B2: without a control plane a restart keeps who claimed a path first, even for a service without
/// instances.
#[tokio::test]
async fn the_order_of_claims_survives_a_restart_and_an_upgrade() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    let register = |agent: &Agent, service: &str, id: &str| {
        let instance = Instance {
            protos: vec!["u.Users".to_owned()],
            ..instance(service, id, "127.0.0.1:7001")
        };
        agent.register(super::checked(instance)).unwrap()
    };
    let first = register(&before, "users", "u1");
    register(&before, "canary", "c1");
    let quiet = Instance {
        protos: vec!["u.Users".to_owned()],
        claim_paths: Some(false),
        ..instance("quiet", "q1", "127.0.0.1:7002")
    };
    before.register(super::checked(quiet)).unwrap();
    before.deregister(&first).unwrap();
    saved::save(&dir, &before).await;

    let after = Agent::new("a");
    after.restore(saved::load(&dir, "a"));
    register(&after, "third", "t1");
    register(&after, "users", "u2");
    let claims = after.claims().in_order();
    let order: Vec<_> = claims.iter().map(|(service, _)| service.as_str()).collect();
    assert_eq!(order, ["users.default", "canary.default", "third.default"]);
}
