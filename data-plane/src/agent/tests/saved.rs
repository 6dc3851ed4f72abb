use std::{fs, time::Duration};

use heddle_proto::registry::v1::{Health, Instance};
use prost::bytes::Bytes;

use super::{instance, until};
use crate::{
    agent::{
        Agent,
        left::LeftRecord,
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

/// Issue 10, D5: the next process missed them, which the mesh took for an expiry.
#[tokio::test]
async fn what_leaves_before_the_end_is_not_missed_by_the_next_process() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    let add = |id: &str| {
        let one = super::checked(instance("echo", id, "127.0.0.1:7001"));
        before.register(one).unwrap()
    };
    let (drains, broke, stays) = (add("drains"), add("broke"), add("stays"));
    before.drain(&drains, None, Duration::ZERO).unwrap();
    let stream = before.stream_opened(&broke).unwrap();
    before.stream_closed(&broke, stream, Cause::StreamBroke);
    saved::save(&dir, &before).await;

    let after = Agent::new("a");
    after.restore(saved::load(&dir, "a"));
    let (_, views, gone) = after.unreported(0);
    let ids: Vec<_> = views.keys().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, ["stays"]);
    let causes = gone
        .into_iter()
        .map(|(key, cause)| (key.id, cause.map(|it| it.to_string())));
    let broke = Some("its keep-alive stream broke".to_owned());
    assert_eq!(
        causes.collect::<Vec<_>>(),
        [("broke".to_owned(), broke), ("drains".to_owned(), None)]
    );
    // The one that left can still ask whether everybody knows.
    let leaving = after.drain(&drains, None, Duration::ZERO).unwrap();
    assert_eq!(leaving.key.id, "drains");
    assert!(after.drain(&stays, None, Duration::ZERO).is_some());
    assert!(after.drain("no such", None, Duration::ZERO).is_none());
}

/// Issue 10, D5: the next process did not know, and served it until its time to come back was over.
#[tokio::test]
async fn what_leaves_a_stopping_process_is_known_to_the_next_one() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    let add = |id: &str| {
        let one = super::checked(instance("echo", id, "127.0.0.1:7001"));
        before.register(one).unwrap()
    };
    let (first, second, back) = (add("first"), add("second"), add("back"));
    add("stays");
    before.stop();
    let saved = saved::save(&dir, &before).await;
    dir.release();
    let mut record = LeftRecord::new(Some(dir), "p1", saved);
    record.update(&before).await;
    let files = || fs::read_dir(temp.path()).unwrap().filter_map(Result::ok);
    let records = || files().filter(|e| e.file_name().to_string_lossy().starts_with("left-"));
    assert_eq!(records().count(), 0, "nothing to tell");
    before.drain(&first, None, Duration::ZERO).unwrap();
    record.update(&before).await;

    let dir = StateDir::open(temp.path()).unwrap();
    let after = Agent::new("a");
    after.restore(saved::load(&dir, "a"));
    assert_eq!(after.views().1.len(), 3);
    // The old process lives on: what it says later counts as well, but not for one that has come to this process.
    after.stream_opened(&back).unwrap();
    tokio::spawn(saved::keep(dir.clone(), after.clone()));
    before.drain(&second, None, Duration::ZERO).unwrap();
    before.drain(&back, None, Duration::ZERO).unwrap();
    record.update(&before).await;
    until(&after, "the second has left", |views| views.len() == 2).await;
    let (_, views, gone) = after.unreported(0);
    assert!(
        views
            .keys()
            .all(|key| key.id == "back" || key.id == "stays"),
        "{views:?}"
    );
    assert!(
        gone.len() == 2 && gone.values().all(Option::is_none),
        "{gone:?}"
    );
    for registration in [&first, &second] {
        assert!(after.drain(registration, None, Duration::ZERO).is_some());
    }
    // Once nothing is awaited, the record is not needed any more.
    let stays = views
        .values()
        .find(|view| view.instance.id == "stays")
        .unwrap();
    after.stream_opened(&stays.registration).unwrap();
    super::soon("the record is removed", async {
        while records().count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Issue 10, D5: an instance that ended while its node had no proxy could tell nobody.
#[tokio::test]
async fn what_no_longer_listens_is_not_restored() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    let (_listens, lives) = super::listener().await;
    for (id, address) in [("ended", super::free_address().await), ("lives", lives)] {
        let one = super::checked(instance("echo", id, &address.to_string()));
        before.register(one).unwrap();
    }
    saved::save(&dir, &before).await;
    let mut last = saved::load(&dir, "a");
    last.drop_ended().await;
    let after = Agent::new("a");
    after.restore(last);
    let (_, views, gone) = after.unreported(0);
    let ids: Vec<_> = views.keys().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, ["lives"]);
    let causes: Vec<_> = gone
        .into_iter()
        .map(|(key, cause)| (key.id, cause))
        .collect();
    assert_eq!(causes, [("ended".to_owned(), Some(Cause::EndedBefore))]);
}

/// A damaged record is not trusted, and is no reason to lose anything else.
#[tokio::test]
async fn a_damaged_record_of_the_last_process_is_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let before = Agent::new("a");
    let one = super::checked(instance("echo", "e1", "127.0.0.1:7001"));
    before.register(one).unwrap();
    saved::save(&dir, &before).await;
    fs::write(temp.path().join("left-p1"), b"heddle\0 torn").unwrap();
    dir.write("left-p2", b"\xff\xff no message").unwrap();
    let last = saved::load(&dir, "a");
    assert_eq!((last.instances.len(), last.left.len()), (1, 0));
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
