use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, HealthCheck, Instance, health_check::Kind};

use super::{checked, instance};
use crate::agent::{
    instance_table::{InstanceTable, MAX_INSTANCES, Refused},
    key::InstanceKey,
    removal_log::{Cause, Causes, RemovalLog},
};

const TTL: Duration = Duration::from_secs(15);

fn key(service: &str, id: &str) -> InstanceKey {
    InstanceKey::of(&Instance {
        namespace: "default".into(),
        ..instance(service, id, "")
    })
}

fn name(word: &str) -> Arc<str> {
    word.into()
}

#[test]
fn without_a_beat_an_instance_is_out_after_the_ttl() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    table
        .register(
            checked(instance("echo", "e1", "127.0.0.1:1")),
            &name("r1"),
            now,
        )
        .unwrap();
    assert_eq!(table.next_expiry(), Some(now + TTL));
    let stream = table.stream_opened("r1", now + TTL / 2).unwrap();
    assert_eq!(table.expire(now + TTL), [], "it has beaten meanwhile");
    assert_eq!(
        table.beat("r1", now + TTL),
        Some((Health::Healthy, String::new()))
    );
    let out = table.expire(now + TTL * 2);
    assert_eq!(out, [(key("echo", "e1"), Some(Cause::NoBeat(TTL)))]);
    assert_eq!(table.beat("r1", now), None);
    assert_eq!(table.stream_closed("r1", stream, Cause::StreamBroke), None);
}

#[test]
fn a_broken_stream_takes_its_own_registration_out_and_no_newer_one() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    let one = || checked(instance("echo", "e1", "127.0.0.1:1"));
    table.register(one(), &name("r1"), now).unwrap();
    let old = table.stream_opened("r1", now).unwrap();
    // It registers again before the old stream is seen to break.
    table.register(one(), &name("r2"), now).unwrap();
    assert_eq!(table.stream_closed("r1", old, Cause::StreamBroke), None);
    assert_eq!(table.views().len(), 1);
    // Two streams of one registration: only the newer one counts.
    let first = table.stream_opened("r2", now).unwrap();
    let second = table.stream_opened("r2", now).unwrap();
    assert_eq!(table.stream_closed("r2", first, Cause::StreamBroke), None);
    assert_eq!(
        table.stream_closed("r2", second, Cause::StreamBroke),
        Some(key("echo", "e1"))
    );
    assert!(table.views().is_empty());
}

#[test]
fn what_was_restored_is_served_and_goes_unless_it_comes_back() {
    let now = Instant::now();
    let mut before = InstanceTable::new(TTL);
    for id in ["e1", "e2"] {
        before
            .register(checked(instance("echo", id, "127.0.0.1:1")), &name(id), now)
            .unwrap();
    }
    let mut after = InstanceTable::new(TTL);
    for view in before.registered() {
        after.restore((*view).clone(), now);
    }
    assert!(after.views().values().all(|v| v.health == Health::Healthy));
    after
        .register(
            checked(instance("echo", "e1", "127.0.0.1:1")),
            &name("new"),
            now + TTL / 2,
        )
        .unwrap();
    let out = after.expire(now + TTL);
    assert_eq!(out, [(key("echo", "e2"), Some(Cause::NotBack(TTL)))]);
    assert_eq!(after.views().len(), 1);
}

#[test]
fn an_instance_with_a_check_waits_for_it_and_keeps_its_health_over_a_new_registration() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    let check = HealthCheck {
        kind: Kind::Tcp.into(),
        ..HealthCheck::default()
    };
    let one = || {
        checked(Instance {
            health: Some(check.clone()),
            ..instance("echo", "e1", "127.0.0.1:1")
        })
    };
    let health = |table: &InstanceTable| table.view(&key("echo", "e1")).unwrap().health;
    table.register(one(), &name("r1"), now).unwrap();
    assert_eq!(health(&table), Health::Unhealthy);
    assert!(!table.checks_done());
    assert!(table.set_health(&key("echo", "e1"), "r1", Health::Healthy, ""));
    assert!(table.checks_done());
    table.register(one(), &name("r2"), now).unwrap();
    assert_eq!(
        health(&table),
        Health::Healthy,
        "its stream broke, its process did not"
    );
    assert!(
        !table.set_health(&key("echo", "e1"), "r1", Health::Unhealthy, "late"),
        "an old check's word"
    );
}

#[test]
fn a_file_and_a_registration_do_not_fight() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    let one = |id: &str, address: &str| checked(instance("echo", id, address));
    let file = Path::new("/s/a.yaml");
    table
        .register(one("own", "127.0.0.1:1"), &name("r1"), now)
        .unwrap();
    let refused = table.set_file(file, vec![(one("own", "127.0.0.1:2"), name("f1"))], now);
    assert!(matches!(refused, Err(Refused::OwnedByRegistration { .. })));
    table
        .set_file(file, vec![(one("e1", "127.0.0.1:2"), name("f2"))], now)
        .unwrap();
    let refused = table
        .register(one("e1", "127.0.0.1:3"), &name("r2"), now)
        .unwrap_err();
    assert!(refused.to_string().contains("/s/a.yaml"), "{refused}");
    let other = table.set_file(
        Path::new("/s/b.yaml"),
        vec![(one("e1", "127.0.0.1:2"), name("f3"))],
        now,
    );
    assert!(matches!(other, Err(Refused::OwnedByFile { .. })));

    // Unchanged content changes nothing; instances of files are not saved and do not expire.
    let version = table.version();
    let same = table.set_file(file, vec![(one("e1", "127.0.0.1:2"), name("f4"))], now);
    assert_eq!(
        same.map(|filed| (filed.joined.len(), filed.leaving)),
        Ok((0, vec![]))
    );
    assert_eq!(table.version(), version);
    assert_eq!(table.registered().len(), 1);
    assert_eq!(table.expire(now + TTL * 9).len(), 1);
    // What the file no longer names drains, and is removed after its time if nobody removes it.
    let leaving = table.set_file(file, vec![], now).unwrap().leaving;
    assert_eq!(leaving.len(), 1);
    assert!(!table.has_file(file));
    assert_eq!(table.expire(now + TTL), [(key("echo", "e1"), None)]);
    assert!(table.views().is_empty());
}

#[test]
fn one_that_drains_takes_nothing_new_and_comes_back_only_by_registering() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    let one = || checked(instance("echo", "e1", "127.0.0.1:1"));
    table.register(one(), &name("r1"), now).unwrap();
    let stream = table.stream_opened("r1", now).unwrap();
    let before = table.version();
    let leaving = table.drain("r1", None, now, Duration::ZERO).unwrap();
    assert_eq!(
        (leaving.key, leaving.version),
        (key("echo", "e1"), before + 1)
    );
    let view = |table: &InstanceTable| Arc::clone(table.view(&key("echo", "e1")).unwrap());
    assert_eq!(view(&table).health, Health::Draining);
    assert!(!view(&table).reason.is_empty());
    // A passed check does not end the draining, beats do not prolong it, and it is not saved.
    assert!(!table.set_health(&key("echo", "e1"), "r1", Health::Healthy, ""));
    assert_eq!(
        table.beat("r1", now + TTL / 2),
        Some((
            Health::Draining,
            crate::agent::instance_table::DRAINING.to_owned()
        ))
    );
    assert!(table.registered().is_empty());
    assert_eq!(
        table
            .drain("r1", None, now + TTL / 2, Duration::ZERO)
            .unwrap()
            .version,
        before + 1
    );
    assert_eq!(table.expire(now + TTL).len(), 1);
    assert_eq!(table.stream_closed("r1", stream, Cause::StreamBroke), None);

    // If it registers again while it drains, it is new.
    table.register(one(), &name("r2"), now).unwrap();
    table.drain("r2", None, now, Duration::ZERO).unwrap();
    table.register(one(), &name("r3"), now).unwrap();
    assert_eq!(view(&table).health, Health::Healthy);
    assert_eq!(table.deregister("r2", None), None);
    assert_eq!(table.drain("nobody", None, now, Duration::ZERO), None);
}

#[test]
fn why_an_instance_went_is_remembered_until_the_control_plane_knows() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    let one = |id: &str| checked(instance("echo", id, "127.0.0.1:1"));
    for id in ["asks", "broke", "silent", "leaves", "taken"] {
        table.register(one(id), &name(id), now).unwrap();
    }
    let file = Path::new("/s/a.yaml");
    let of_file = |id: &str| (one(id), name(id));
    table
        .set_file(file, vec![of_file("edited"), of_file("file")], now)
        .unwrap();
    table.deregister("asks", None);
    let stream = table.stream_opened("broke", now).unwrap();
    table.stream_closed("broke", stream, Cause::StreamBroke);
    // It has deregistered, so the way its stream ends does not matter.
    let stream = table.stream_opened("leaves", now).unwrap();
    table.drain("leaves", None, now, Duration::ZERO).unwrap();
    table.stream_closed("leaves", stream, Cause::StreamBroke);
    table.deregister("taken", Cause::from_text("its process ended\n"));
    assert_eq!(Cause::from_text("\n"), None);
    // Deleting an instance from its file is a request; a deleted file may be an accident.
    let edited = table
        .set_file(file, vec![of_file("file")], now)
        .unwrap()
        .leaving;
    let gone = table.file_gone(file, now);
    for leaving in edited.iter().chain(&gone) {
        table.deregister(&leaving.registration, None);
    }
    table.expire(now + TTL);
    let remembered = |table: &mut InstanceTable, known: u64| {
        let words = |(key, cause): (InstanceKey, Option<Cause>)| {
            (key.id, cause.map(|cause| cause.to_string()))
        };
        table.gone(known).into_iter().map(words).collect::<Vec<_>>()
    };
    let expected = [
        ("asks", None),
        ("broke", Some("its keep-alive stream broke")),
        ("edited", None),
        ("file", Some("its services file /s/a.yaml is gone")),
        ("leaves", None),
        ("silent", Some("no heartbeat for 15s")),
        ("taken", Some("its process ended")),
    ];
    let expected = expected.map(|(id, cause)| (id.to_owned(), cause.map(str::to_owned)));
    assert_eq!(remembered(&mut table, 0), expected);

    // An instance that is back is not gone; what the control plane knows is forgotten.
    let before = table.version();
    table.register(one("broke"), &name("again"), now).unwrap();
    assert_eq!(remembered(&mut table, 0).len(), 6);
    table.deregister("again", None);
    let left = remembered(&mut table, before);
    assert_eq!(left, [("broke".to_owned(), None)]);
    let version = table.version();
    assert_eq!(table.gone(version), Causes::new());
}

#[test]
fn no_more_is_remembered_than_a_node_can_have() {
    let mut log = RemovalLog::default();
    for change in 1..=MAX_INSTANCES as u64 + 5 {
        let one = key("echo", &format!("e{change}"));
        log.record(one, name("r"), None, change);
    }
    let causes = log.causes();
    assert_eq!(causes.len(), MAX_INSTANCES);
    assert!(!causes.contains_key(&key("echo", "e5")) && causes.contains_key(&key("echo", "e6")));
    log.forget(&key("echo", "e6"));
    log.acknowledge(MAX_INSTANCES as u64);
    assert_eq!(log.causes().len(), 5);
}

#[test]
fn one_that_replaces_a_running_one_is_known_to() {
    let now = Instant::now();
    let mut table = InstanceTable::new(TTL);
    let mut register = |port: u16, registration: &str| {
        let instance = instance("echo", "e1", &format!("127.0.0.1:{port}"));
        let joined = table.register(checked(instance), &name(registration), now);
        let stream = table.stream_opened(registration, now).unwrap();
        (joined.unwrap().ousted, stream)
    };
    assert_eq!(register(1, "r1").0, None);
    assert_eq!(register(1, "r2").0, None, "it came back itself");
    let (ousted, stream) = register(2, "r3");
    assert_eq!(ousted, Some("127.0.0.1:1".parse().unwrap()));
    table.stream_closed("r3", stream, Cause::StreamBroke);
    let joined = table.register(
        checked(instance("echo", "e1", "127.0.0.1:3")),
        &name("r4"),
        now,
    );
    assert_eq!(joined.unwrap().ousted, None, "it was gone");
}
