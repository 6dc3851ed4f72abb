use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, HealthCheck, Instance, health_check::Kind};

use super::{checked, instance};
use crate::agent::{
    book::{Book, Refused, Source},
    key::InstanceKey,
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
    let mut book = Book::new(TTL);
    book.register(
        checked(instance("echo", "e1", "127.0.0.1:1")),
        &name("r1"),
        now,
    )
    .unwrap();
    assert_eq!(book.next_expiry(), Some(now + TTL));
    let stream = book.stream_opened("r1", now + TTL / 2).unwrap();
    assert_eq!(book.expire(now + TTL), [], "it has beaten meanwhile");
    assert_eq!(book.beat("r1", now + TTL), Some(Health::Healthy));
    let out = book.expire(now + TTL * 2);
    assert_eq!(out, [(key("echo", "e1"), Source::Registered)]);
    assert_eq!(book.beat("r1", now), None);
    assert_eq!(book.stream_closed("r1", stream), None);
}

#[test]
fn a_broken_stream_takes_its_own_registration_out_and_no_newer_one() {
    let now = Instant::now();
    let mut book = Book::new(TTL);
    let one = || checked(instance("echo", "e1", "127.0.0.1:1"));
    book.register(one(), &name("r1"), now).unwrap();
    let old = book.stream_opened("r1", now).unwrap();
    // Registered again before the old stream is seen to break.
    book.register(one(), &name("r2"), now).unwrap();
    assert_eq!(book.stream_closed("r1", old), None);
    assert_eq!(book.views().len(), 1);
    // Two streams of one registration: the newer stands for it.
    let first = book.stream_opened("r2", now).unwrap();
    let second = book.stream_opened("r2", now).unwrap();
    assert_eq!(book.stream_closed("r2", first), None);
    assert_eq!(book.stream_closed("r2", second), Some(key("echo", "e1")));
    assert!(book.views().is_empty());
}

#[test]
fn what_was_restored_is_served_and_goes_unless_it_comes_back() {
    let now = Instant::now();
    let mut before = Book::new(TTL);
    for id in ["e1", "e2"] {
        before
            .register(checked(instance("echo", id, "127.0.0.1:1")), &name(id), now)
            .unwrap();
    }
    let mut after = Book::new(TTL);
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
    assert_eq!(out, [(key("echo", "e2"), Source::Restored)]);
    assert_eq!(after.views().len(), 1);
}

#[test]
fn an_instance_with_a_check_waits_for_it_and_keeps_its_health_over_a_new_registration() {
    let now = Instant::now();
    let mut book = Book::new(TTL);
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
    let health = |book: &Book| book.view(&key("echo", "e1")).unwrap().health;
    book.register(one(), &name("r1"), now).unwrap();
    assert_eq!(health(&book), Health::Unhealthy);
    assert!(!book.settled());
    assert!(book.set_health(&key("echo", "e1"), "r1", Health::Healthy, ""));
    assert!(book.settled());
    book.register(one(), &name("r2"), now).unwrap();
    assert_eq!(
        health(&book),
        Health::Healthy,
        "its stream broke, its process did not"
    );
    assert!(
        !book.set_health(&key("echo", "e1"), "r1", Health::Unhealthy, "late"),
        "an old check's word"
    );
}

#[test]
fn a_file_and_a_registration_do_not_fight() {
    let now = Instant::now();
    let mut book = Book::new(TTL);
    let one = |id: &str, address: &str| checked(instance("echo", id, address));
    let file = Path::new("/s/a.yaml");
    book.register(one("own", "127.0.0.1:1"), &name("r1"), now)
        .unwrap();
    let refused = book.set_file(file, vec![(one("own", "127.0.0.1:2"), name("f1"))], now);
    assert!(matches!(refused, Err(Refused::HeldByRegistration { .. })));
    book.set_file(file, vec![(one("e1", "127.0.0.1:2"), name("f2"))], now)
        .unwrap();
    let refused = book
        .register(one("e1", "127.0.0.1:3"), &name("r2"), now)
        .unwrap_err();
    assert!(refused.to_string().contains("/s/a.yaml"), "{refused}");
    let other = book.set_file(
        Path::new("/s/b.yaml"),
        vec![(one("e1", "127.0.0.1:2"), name("f3"))],
        now,
    );
    assert!(matches!(other, Err(Refused::HeldByFile { .. })));

    // Unchanged content touches nothing; files are not kept for the next start, nor do they expire.
    let version = book.version();
    let same = book.set_file(file, vec![(one("e1", "127.0.0.1:2"), name("f4"))], now);
    assert_eq!(
        same.map(|(joined, leaving)| (joined.len(), leaving)),
        Ok((0, vec![]))
    );
    assert_eq!(book.version(), version);
    assert_eq!(book.registered().len(), 1);
    assert_eq!(book.expire(now + TTL * 9).len(), 1);
    // What the file does not name any more drains; the time takes it out if nobody does.
    let (_, leaving) = book.set_file(file, vec![], now).unwrap();
    assert_eq!(leaving.len(), 1);
    assert!(!book.has_file(file));
    assert_eq!(
        book.expire(now + TTL),
        [(key("echo", "e1"), Source::Leaving)]
    );
    assert!(book.views().is_empty());
}

#[test]
fn one_that_drains_takes_nothing_new_and_comes_back_only_by_registering() {
    let now = Instant::now();
    let mut book = Book::new(TTL);
    let one = || checked(instance("echo", "e1", "127.0.0.1:1"));
    book.register(one(), &name("r1"), now).unwrap();
    let stream = book.stream_opened("r1", now).unwrap();
    let before = book.version();
    let leaving = book.drain("r1", now).unwrap();
    assert_eq!(
        (leaving.key, leaving.version),
        (key("echo", "e1"), before + 1)
    );
    let view = |book: &Book| Arc::clone(book.view(&key("echo", "e1")).unwrap());
    assert_eq!(view(&book).health, Health::Draining);
    assert!(!view(&book).reason.is_empty());
    // A check's success does not bring it back; beats do not keep it; the next process does not serve it.
    assert!(!book.set_health(&key("echo", "e1"), "r1", Health::Healthy, ""));
    assert_eq!(book.beat("r1", now + TTL / 2), Some(Health::Draining));
    assert!(book.registered().is_empty());
    assert_eq!(book.drain("r1", now + TTL / 2).unwrap().version, before + 1);
    assert_eq!(book.expire(now + TTL).len(), 1);
    assert_eq!(book.stream_closed("r1", stream), None);

    // It registers again while it drains: as new.
    book.register(one(), &name("r2"), now).unwrap();
    book.drain("r2", now).unwrap();
    book.register(one(), &name("r3"), now).unwrap();
    assert_eq!(view(&book).health, Health::Healthy);
    assert_eq!(book.deregister("r2"), None);
    assert_eq!(book.drain("nobody", now), None);
}
