//! A control plane that is cut off, stops, or is missing at start: the state is kept and served.

use super::*;
use crate::{state_dir::StateDir, xds::last_good};

/// Forwards bytes to `target` until it is stopped: then both sides are silent, without a connection reset.
async fn silent_on_demand(target: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let silent = tokio::sync::watch::Sender::new(false);
    let seen = silent.subscribe();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut seen = seen.clone();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                let silence = async { drop(seen.wait_for(|silent| *silent).await) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = silence => {}
                }
                // Both sockets stay open.
                std::future::pending::<()>().await;
                drop((near, far));
            });
        }
    });
    (addr, silent)
}

#[tokio::test]
async fn a_replica_that_is_cut_off_without_a_word_is_left_within_seconds() {
    let (first, mut first_visits) = ads().await;
    let (second, mut second_visits) = ads().await;
    let (first, first_silent) = silent_on_demand(first).await;
    let (second, second_silent) = silent_on_demand(second).await;
    let urls = [first, second].map(|addr| format!("http://{addr}"));
    let started = start(urls.into(), Resources::default());
    // The order of connections is random.
    let (mut visit, silent, others) = tokio::select! {
        visit = first_visits.recv() => (visit.unwrap(), first_silent, &mut second_visits),
        visit = second_visits.recv() => (visit.unwrap(), second_silent, &mut first_visits),
    };
    visit.opening(&[]).await;
    visit.name(&["echo.default"]).await;
    until(&started.handle, "all services", |v| v.complete).await;
    silent.send_replace(true);
    let cut = Instant::now();
    let mut visit = soon("the other replica", others.recv()).await.unwrap();
    // Two seconds of silence, three for the ping, and the time to connect.
    assert!(
        cut.elapsed() < Duration::from_secs(8),
        "{:?}",
        cut.elapsed()
    );
    visit.opening(&[]).await;
}

#[tokio::test]
async fn while_the_control_plane_is_away_all_stays_and_on_return_only_differences_are_sent() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let called = [("echo.default", "10.0.0.2:15008")];
    let all = ["echo.default", "users.shop"];
    let visit = running(&mut visits, &started, &all, &called).await;
    drop(visit);
    let mut away = started.handle.status.clone();
    soon("the end", away.wait_for(|s| s.connected.is_none()))
        .await
        .unwrap();
    // Called in the meantime: subscribed to on return.
    started.calls(&["users.shop"]);
    assert!(
        endpoints(&started.handle.view.borrow(), "echo.default").is_some(),
        "served meanwhile"
    );
    let mut visit = soon("a second stream", visits.recv()).await.unwrap();
    let requests = visit.opening(&["echo.default", "users.shop"]).await;
    let held = |kind: &str| requests[kind].initial_resource_versions.clone();
    let echo = |version: &str| HashMap::from([("echo.default".into(), version.into())]);
    assert_eq!((held(CLUSTER), held(ASSIGNMENT)), (echo("c1"), echo("e1")));
    assert_eq!(held(INDEX).len(), 2);
    // It was removed while the connection was down.
    visit.send(INDEX, vec![], &["echo.default"]).await;
    visit.send(CLUSTER, vec![], &["echo.default"]).await;
    until(&started.handle, "gone", |v| {
        !v.clusters.contains_key("echo.default")
    })
    .await;
}

#[tokio::test]
async fn the_last_good_state_survives_a_restart_and_what_it_has_is_in_use() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let called = [("echo.default", "10.0.0.2:15008")];
    let all = ["echo.default", "users.shop"];
    running(&mut visits, &started, &all, &called).await;
    let snapshot = started.handle.snapshot.borrow().clone();
    last_good::write(&dir, "a", snapshot).await.unwrap();

    let (resources, revision) = last_good::load(&dir, "a").unwrap();
    assert_eq!(revision, 103);
    let nobody = "http://127.0.0.1:1".to_owned();
    let restarted = start(vec![nobody], resources);
    let view = restarted.handle.view.borrow().clone();
    assert!(view.complete, "no answer of the control plane is needed");
    assert_eq!(endpoints(&view, "echo.default").unwrap().len(), 1);
    assert!(view.clusters.contains_key("users.shop"), "known by name");
    let mut status = restarted.handle.status.clone();
    soon(
        "it says so",
        status.wait_for(|s| s.error.contains("refused")),
    )
    .await
    .unwrap();

    let (resources, _) = last_good::load(&dir, "a").unwrap();
    let (addr, mut visits) = ads().await;
    let _restarted = start(vec![format!("http://{addr}")], resources);
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&["echo.default"]).await;

    // The state of another node is not used.
    assert!(last_good::load(&dir, "b").is_none());
    assert!(last_good::load(&dir, "a").is_none(), "set aside");
}
