//! Removals of instances, and of the node itself.

use super::*;

/// Issue 10, D5: it did not report it, and the node's lease expired.
#[tokio::test]
async fn a_stopping_process_reports_it_and_does_not_return() {
    let agent = Agent::new("a");
    let e1 = agent
        .register(checked(instance("echo", "e1", "127.0.0.1:1")))
        .unwrap();
    let stream = agent.stream_opened(&e1).unwrap();
    let (handle, mut visits, mut visit) = opened(&agent).await;
    visit.hello().await;
    visit.welcome(41, &[]).await;
    let mut status = handle.status();
    let connected = status.wait_for(|now| matches!(now, SessionStatus::Connected(_)));
    soon("connected", connected).await.unwrap();
    agent.stop();
    let ending = tokio::spawn({
        let handle = handle.clone();
        async move { handle.end().await }
    });
    let last = visit.next().await;
    assert!(
        matches!(last, node_message::Message::Stopping(_)),
        "{last:?}"
    );
    drop(visit);
    soon("the end", ending).await.unwrap();
    assert_eq!(*handle.status().borrow(), SessionStatus::Ended);
    assert!(visits.try_recv().is_err(), "it has not come back");
    // The instance belongs to the successor: the end of its stream here does not remove it, and no new one is accepted.
    agent.stream_closed(&e1, stream, Cause::StreamBroke);
    assert_eq!(agent.views().1.len(), 1);
    let refused = agent.register(checked(instance("echo", "e2", "127.0.0.1:2")));
    assert_eq!(refused.unwrap_err(), Refused::Stopping);
}

/// Ids and causes.
fn causes(gone: &[GoneInstance]) -> Vec<(&str, &str)> {
    let causes = gone.iter().map(|one| (one.id.as_str(), one.cause.as_str()));
    causes.collect()
}

#[tokio::test]
async fn causes_of_removals_are_reported_once_and_not_lost_while_no_session_is_open() {
    const BROKE: &str = "its keep-alive stream broke";
    let agent = Agent::new("a");
    let register = |id: &str| {
        let one = checked(instance("echo", id, "127.0.0.1:1"));
        agent.register(one).unwrap()
    };
    let breaks = |registration: &str| {
        let stream = agent.stream_opened(registration).unwrap();
        agent.stream_closed(registration, stream, Cause::StreamBroke);
    };
    let all = ["e1", "e2", "e3", "e4", "e5"].map(register);
    // The control plane never knew of this one.
    breaks(&register("e0"));
    let (_, mut visits, mut visit) = opened(&agent).await;
    let hello = visit.hello().await;
    assert_eq!(causes(&hello.gone), [("e0", BROKE)]);
    visit.welcome(1, &[]).await;

    breaks(&all[0]);
    let change = next_change(&mut visit).await;
    assert_eq!(causes(&change.removed), [("e1", BROKE)]);
    agent.deregister(&all[1]).unwrap();
    visit.acknowledge(1).await;
    let change = next_change(&mut visit).await;
    assert_eq!(causes(&change.removed), [("e2", "")]);
    // This change is not acknowledged, and more happens before the next session.
    breaks(&all[2]);
    agent.deregister(&all[3]).unwrap();
    drop(visit);
    let mut visit = soon("a second session", visits.recv()).await.unwrap();
    let hello = visit.hello().await;
    assert_eq!(ids(&hello), ["e5"]);
    assert_eq!(causes(&hello.gone), [("e2", ""), ("e3", BROKE), ("e4", "")]);
    // No Welcome yet, so they are sent once more. After Welcome they are known.
    drop(visit);
    let mut visit = soon("a third session", visits.recv()).await.unwrap();
    assert_eq!(visit.hello().await.gone.len(), 3);
    visit.welcome(1, &[]).await;
    breaks(&all[4]);
    let change = next_change(&mut visit).await;
    assert_eq!(causes(&change.removed), [("e5", BROKE)]);
    visit.acknowledge(1).await;
    register("e6");
    assert!(matches!(
        visit.next().await,
        node_message::Message::Change(_)
    ));
    drop(visit);
    let mut visit = soon("a fourth session", visits.recv()).await.unwrap();
    assert_eq!(causes(&visit.hello().await.gone), []);
}

#[tokio::test]
async fn a_removal_is_queried_only_once_it_is_durable() {
    let agent = Agent::new("a");
    let registration = agent
        .register(checked(instance("echo", "e1", "127.0.0.1:1")))
        .unwrap();
    let (handle, mut visits, mut visit) = opened(&agent).await;
    visit.hello().await;
    visit.welcome(1, &[]).await;
    let mut status = handle.status();
    soon(
        "connected",
        status.wait_for(|s| matches!(s, SessionStatus::Connected(_))),
    )
    .await
    .unwrap();

    let (key, version) = agent.deregister(&registration).unwrap();
    let removal = tokio::spawn({
        let (handle, key) = (handle.clone(), key.clone());
        async move { handle.removal(&key, version, Duration::from_secs(5)).await }
    });
    let change = next_change(&mut visit).await;
    assert_eq!(change.removed.len(), 1);
    visit.acknowledge(1).await;
    let node_message::Message::RemovalQuery(query) = visit.next().await else {
        panic!("no query")
    };
    assert_eq!(query.instance.unwrap().id, "e1");
    let answer = RemovalAnswer {
        id: query.id,
        acknowledged: false,
        unacknowledged: vec!["slow".into()],
    };
    visit
        .say(control_message::Message::RemovalAnswer(answer))
        .await;
    let answer = soon("the answer", removal).await.unwrap();
    assert_eq!(
        (answer.acknowledged, answer.unacknowledged),
        (false, vec!["slow".to_owned()])
    );

    // The session breaks while a query waits: the query is sent again to the next one.
    let removal = tokio::spawn({
        let (handle, key) = (handle.clone(), key.clone());
        async move { handle.removal(&key, version, Duration::from_secs(5)).await }
    });
    assert!(matches!(
        visit.next().await,
        node_message::Message::RemovalQuery(_)
    ));
    drop(visit);
    let mut visit = soon("a second session", visits.recv()).await.unwrap();
    assert!(visit.hello().await.instances.is_empty());
    visit.welcome(1, &[]).await;
    let node_message::Message::RemovalQuery(query) = visit.next().await else {
        panic!("no query")
    };
    let answer = RemovalAnswer {
        id: query.id,
        acknowledged: true,
        unacknowledged: vec![],
    };
    visit
        .say(control_message::Message::RemovalAnswer(answer))
        .await;
    assert!(soon("the answer", removal).await.unwrap().acknowledged);

    // The control plane stops: the wait is bounded, and the answer says so.
    drop(visit);
    drop(visits);
    soon(
        "broken",
        status.wait_for(|s| matches!(s, SessionStatus::Connecting(_))),
    )
    .await
    .unwrap();
    let answer = soon(
        "an answer",
        handle.removal(&key, version, Duration::from_millis(100)),
    )
    .await;
    assert!(!answer.acknowledged && answer.unacknowledged[0].contains("not connected"));
}

/// The control plane does not have it, and reported an expiry of what never was in use.
#[tokio::test]
async fn the_removal_of_a_refused_instance_is_not_reported() {
    let agent = Agent::new("a");
    let register = |id: &str, port: u16| {
        let one = checked(plain(id, port));
        agent.register(one).unwrap()
    };
    let (bad, good) = (register("bad", 1), register("good", 2));
    let (_, _visits, mut visit) = opened(&agent).await;
    visit.hello().await;
    visit
        .say(control_message::Message::Welcome(Welcome {
            epoch: 1,
            rejected: vec![rejection("bad")],
            ..Welcome::default()
        }))
        .await;
    until(&agent, "it is refused", |views| {
        let mut all = views.values();
        all.any(|view| view.health == Health::Unhealthy && view.reason == REFUSED)
    })
    .await;
    let gone = Some(Cause::FileGone("/f.yaml".into()));
    agent.drain(&bad, gone.clone(), Duration::ZERO).unwrap();
    agent.deregister(&bad).unwrap();
    agent.remove_instance(&good, gone).unwrap();
    let change = next_change(&mut visit).await;
    let cause = "its services file /f.yaml is gone";
    assert_eq!(causes(&change.removed), [("good", cause)]);
    assert!(change.upserted.is_empty(), "{:?}", change.upserted);
}
