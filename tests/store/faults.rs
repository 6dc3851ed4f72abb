//! What readers, writers, leases and watches see while members of a cluster are killed, frozen and restarted: no
//! acknowledged write is lost, no change is delivered twice, and no call hangs.

use std::sync::Arc;
use std::time::Duration;

use heddle_control::store::{
    Changes, Compare, Etcd as Engine, EtcdOptions, LeaseId, Op, Revision, Store, StoreError, Txn,
    Watch,
};
use heddle_tests::etcd::Etcd;
use heddle_tests::wait::{TIMEOUT, seen, until};

use crate::engines::open;

/// The time limit of a call (5 s), and a margin for a busy machine.
const BOUND: Duration = Duration::from_secs(15);

/// Asserts that a call answers or fails within its time limit.
async fn in_time<T>(call: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(BOUND, call).await;
    answer.expect("a call of the store hangs")
}

/// Writes 0, 1, 2, … under a condition, so that a lost answer cannot double a write, and records the acknowledged revisions.
struct Writer {
    store: Arc<Engine>,
    count: u64,
    revisions: Vec<Revision>,
}

impl Writer {
    fn new(store: &Arc<Engine>) -> Self {
        Self {
            store: Arc::clone(store),
            count: 0,
            revisions: Vec::new(),
        }
    }

    async fn write(&mut self) {
        let key = format!("n/{:06}", self.count);
        until("the store takes a write", async || {
            let txn = Txn {
                compare: vec![Compare::absent(&key)],
                then: vec![Op::put(&key, self.count.to_string())],
                ..Txn::default()
            };
            match in_time(self.store.txn(txn)).await {
                Ok(_) => Ok(()),
                Err(error @ StoreError::Unavailable { .. }) => Err(error.to_string()),
                Err(error) => panic!("{error}"),
            }
        })
        .await;
        // Either the last attempt wrote it or one whose answer was lost.
        let found = until("the store answers", async || {
            self.store
                .get(&key)
                .await
                .map_err(|error| error.to_string())
        });
        self.revisions.push(found.await.unwrap().mod_revision);
        self.count += 1;
    }
}

/// Keeps a lease alive as soon as the store lets it.
async fn keep(store: &Engine, lease: LeaseId) {
    until("the lease is kept", async || {
        store
            .keep_alive(lease)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

/// Asserts that each of these writes arrives exactly once and in order.
async fn follow(watch: &mut Watch, revisions: &[Revision]) {
    let mut given = Vec::new();
    while given.len() < revisions.len() {
        let next = tokio::time::timeout(TIMEOUT, watch.next()).await;
        let Changes { revision, events } = next.expect("the watch is silent").unwrap().unwrap();
        given.extend(events.iter().map(|_| revision));
    }
    assert_eq!(given, revisions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_and_a_lease_outlive_the_leader() {
    let mut etcd = Etcd::cluster().await;
    let store = open(&etcd);
    // Longer than all kills take: `keep` shows whether keep-alives are answered.
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let held = Txn {
        then: vec![Op::put_leased("held", "", lease)],
        ..Txn::default()
    };
    let at = store.txn(held).await.unwrap().revision;
    let mut watch = store.watch("n/", at.next()).await.unwrap();
    let mut writer = Writer::new(&store);
    for round in 0..3 {
        for _ in 0..5 {
            writer.write().await;
        }
        let leader = etcd.leader().await;
        etcd.kill(leader).await;
        tokio::join!(keep(&store, lease), async {
            for _ in 0..5 {
                writer.write().await;
            }
        });
        etcd.restart(leader).await;
        assert!(store.get("held").await.unwrap().is_some(), "round {round}");
    }
    follow(&mut watch, &writer.revisions).await;
    assert!(store.counters().faults > 0, "members were left");
    store.revoke(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_calls_end_in_time_and_with_it_they_go_on() {
    let mut etcd = Etcd::cluster().await;
    let store = open(&etcd);
    let mut writer = Writer::new(&store);
    writer.write().await;
    let mut watch = store.watch("n/", writer.revisions[0]).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    // Both cases: a leader that is left alone does not know at once that it has no quorum.
    for left in ["a follower", "the leader"] {
        let leader = etcd.leader().await;
        let lost = match left {
            "a follower" => [leader, (leader + 1) % 3],
            _ => [(leader + 1) % 3, (leader + 2) % 3],
        };
        for member in lost {
            etcd.kill(member).await;
        }
        let (put, get) = (store.put("lost", "x".into()), store.get("n/000000"));
        let (put, get) = in_time(async { tokio::join!(put, get) }).await;
        // A leader may answer keep-alives for an election timeout; the next leader renews all leases.
        let beat = in_time(store.keep_alive(lease)).await;
        for error in [put.unwrap_err(), beat.unwrap_err(), get.unwrap_err()] {
            let text = error.to_string();
            assert!(
                matches!(error, StoreError::Unavailable { .. }),
                "{left}: {text}"
            );
            assert!(
                text.contains("quorum") && etcd.urls().iter().all(|url| text.contains(url)),
                "{left}: {text}"
            );
        }
        etcd.regain_quorum(lost).await;
        writer.write().await;
        keep(&store, lease).await;
    }
    follow(&mut watch, &writer.revisions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_member_is_left_by_everyone() {
    let mut etcd = Etcd::cluster().await;
    let leader = etcd.leader().await;
    let follower = (leader + 1) % 3;
    // This engine has two members and starts with either: one of the two is frozen while it is used.
    let urls = etcd.urls();
    let pair = vec![urls[follower].clone(), urls[leader].clone()];
    let store = Arc::new(Engine::open(&EtcdOptions::new(pair)).unwrap());
    let mut writer = Writer::new(&store);
    writer.write().await;
    let mut watch = store.watch("n/", writer.revisions[0]).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    keep(&store, lease).await;
    let mut followed = 0;
    for member in [follower, leader] {
        etcd.freeze(member);
        for _ in 0..3 {
            writer.write().await;
        }
        keep(&store, lease).await;
        follow(&mut watch, &writer.revisions[followed..]).await;
        followed = writer.revisions.len();
        etcd.thaw(member);
        etcd.healthy(member).await;
    }
    assert!(
        store.counters().faults > 0,
        "no request went to a frozen member"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_was_away_when_history_was_compacted_gets_an_error() {
    let mut etcd = Etcd::single().await;
    let store = open(&etcd);
    let at = store.put("n/0", "".into()).await.unwrap();
    let mut watch = store.watch("n/", at.next()).await.unwrap();
    etcd.freeze(0);
    let silent = tokio::time::timeout(Duration::from_secs(1), watch.next());
    assert!(silent.await.is_err());
    etcd.kill(0).await;
    etcd.restart(0).await;
    for n in 0..5 {
        etcd.ctl(&["put", "heddle/n/1", &n.to_string()]).await;
    }
    let now = etcd.ctl(&["get", "heddle/n/1", "-w", "json"]).await;
    let now: serde_json::Value = serde_json::from_str(&now).unwrap();
    let now = now["header"]["revision"].as_u64().unwrap();
    etcd.ctl(&["compact", &now.to_string()]).await;
    let error = loop {
        match tokio::time::timeout(TIMEOUT, watch.next()).await.unwrap() {
            Some(Ok(changes)) => assert!(changes.events.is_empty(), "{changes:?}"),
            Some(Err(error)) => break error,
            None => panic!("it ended without a word"),
        }
    };
    let first = Revision(now + 1);
    assert!(
        matches!(error, StoreError::Compacted { first: found, .. } if found == first),
        "{error}"
    );
    assert!(watch.next().await.is_none());
    let error = store.watch("n/", at.next()).await.err().unwrap();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_prefix_keeps_up_with_a_busy_etcd() {
    let etcd = Etcd::single().await;
    let store = open(&etcd);
    let at = store.put("n/0", "".into()).await.unwrap();
    let mut watch = store.watch("", at.next()).await.unwrap();
    for n in 0..5 {
        etcd.ctl(&["put", "somebody/else", &n.to_string()]).await;
    }
    let mut reached = at;
    while reached < Revision(at.0 + 5) {
        let changes = tokio::time::timeout(TIMEOUT, watch.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(changes.events.is_empty() && changes.revision > reached);
        reached = changes.revision;
    }
    let seen_by = store.range("", None).await.unwrap();
    assert_eq!((seen_by.revision, seen_by.items.len()), (reached, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_tls_are_spoken() {
    let folder = heddle_tests::temp::folder();
    let path = |name: &str| folder.path().join(name);
    let certs = heddle_tests::tools::go_peer("certs");
    let made = heddle_tests::process::Start::new("certs", &certs)
        .args([folder.path().as_os_str(), "client".as_ref()]);
    let made = heddle_tests::process::run(made).await;
    assert_eq!(made.code, Some(0), "{}", made.all());
    let tls = heddle_tests::etcd::Tls {
        ca: path("ca.pem"),
        server_cert: path("server.pem"),
        server_key: path("server.key"),
        client_cert: path("client.pem"),
        client_key: path("client.key"),
    };
    let etcd = Etcd::builder()
        .tls(tls.clone())
        .arg("--auth-token-ttl=1")
        .start()
        .await;
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "add", "mesh:word"],
        &["role", "add", "mesh"],
        &[
            "role",
            "grant-permission",
            "mesh",
            "--prefix=true",
            "readwrite",
            "heddle/",
        ],
        &["user", "grant-role", "mesh", "mesh"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args).await;
    }
    let options = |user: Option<(&str, &str)>, prefix: &str| EtcdOptions {
        prefix: prefix.to_owned(),
        ca: Some(tls.ca.clone()),
        identity: Some((tls.client_cert.clone(), tls.client_key.clone())),
        user: user.map(|(name, word)| (name.to_owned(), word.to_owned())),
        ..EtcdOptions::new(etcd.urls())
    };
    let store = Engine::open(&options(Some(("mesh", "word")), "heddle/")).unwrap();
    let at = store.put("a", "1".into()).await.unwrap();
    let mut watch = store.watch("", at).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, at);
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    // The token runs out after a second without a call; calls and streams get a new one.
    tokio::time::sleep(Duration::from_millis(2500)).await; // time itself is what is tested
    assert!(store.get("a").await.unwrap().is_some());
    keep(&store, lease).await;
    let wrong = [
        (
            options(Some(("mesh", "wrong")), "heddle/"),
            "authentication failed",
        ),
        (
            options(Some(("mesh", "word")), "others/"),
            "permission denied",
        ),
    ];
    for (options, part) in wrong {
        let error = Engine::open(&options).unwrap().get("a").await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        let text = error.to_string();
        seen(text.contains(part) && text.contains("--store-user"), text).unwrap();
    }
    // Without a certificate the connection fails, with the cause.
    let bare = EtcdOptions {
        identity: None,
        ..options(None, "heddle/")
    };
    let error = Engine::open(&bare).unwrap().get("a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}
