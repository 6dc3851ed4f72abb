//! Calls to services without subscribed endpoints: the control side is notified once, and the calls wait for the table.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use heddle_proxy::observe::load::{Load, take_all};
use heddle_proxy::route::{Rank, Service};
use heddle_proxy::worker::{Report, WorkerOptions};

use crate::fixture::*;

fn unheld(mut service: Service) -> Service {
    service.endpoints_known = false;
    service
}

/// A second service with the same proto service.
fn also(name: &str, mut service: Service) -> Service {
    let other = Service::new(name, "default");
    (service.name, service.service) = (other.name, other.service);
    service
}

async fn wanted(node: &mut Node) -> String {
    match within(node.reports.recv()).await.unwrap() {
        Report::ServiceWanted { service } => service.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_calls_wait_and_all_succeed_once_the_endpoints_come() {
    const CALLS: usize = 1000;
    let backend = Backend::echo().await;
    let mut node = Node::with(WorkerOptions {
        workers: 1,
        ..options("a")
    });
    node.publish(vec![unheld(echo(vec![]))]);
    let client = node.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..CALLS {
        let client = client.clone();
        calls.spawn(async move { (n, client.put(n.to_string().as_bytes()).await) });
    }
    node.until("all wait", |m| m.waiting_calls == CALLS).await;
    assert_eq!(wanted(&mut node).await, "echo.default");
    assert!(node.reports.try_recv().is_err(), "it is notified once");
    // A table that has nothing of it changes nothing.
    node.publish(vec![unheld(echo(vec![]))]);
    assert_eq!(
        wanted(&mut node).await,
        "echo.default",
        "asked of each table"
    );
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    while let Some(done) = calls.join_next().await {
        let (n, reply) = done.unwrap();
        assert_eq!(reply.status(), "0", "{n}: {}", reply.message());
        assert_eq!(reply.body, n.to_string().as_bytes());
    }
    let metrics = node.until("none is left", |m| m.active_calls == 0).await;
    assert_eq!(metrics.waiting_calls, 0);
    assert_eq!(backend.calls(), CALLS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_is_bounded_and_says_what_it_waits_for_before_the_deadline() {
    let node = Node::with(WorkerOptions {
        workers: 1,
        pending_calls: 2,
        ..options("a")
    });
    node.publish(vec![unheld(echo(vec![]))]);
    let client = node.client().await;
    let wait = |deadline: &'static str| {
        let client = client.clone();
        let call = request("Get").header("grpc-timeout", deadline).body(());
        tokio::spawn(async move { client.call(call.unwrap(), b"x").await.unwrap() })
    };
    let (first, second) = (wait("60S"), wait("60S"));
    node.until("both wait", |m| m.waiting_calls == 2).await;
    let over = client.get(b"x").await;
    assert_eq!((over.status(), over.reason()), ("14", "OVERLOADED"));
    assert!(
        over.message().contains("echo.default"),
        "{}",
        over.message()
    );
    // A caller that goes leaves no trace.
    first.abort();
    second.abort();
    node.until("none waits", |m| m.waiting_calls == 0).await;
    for call in [wait("400m"), wait("300m")] {
        let reply = call.await.unwrap();
        assert_eq!((reply.status(), reply.reason()), ("14", "NOT_READY"));
        for word in ["echo.default", "control plane has not answered", "node a"] {
            assert!(reply.message().contains(word), "{}", reply.message());
        }
    }
    node.until("they are gone", |m| m.waiting_calls == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_instance_takes_calls_at_once_and_if_it_is_dead_they_wait_for_the_others() {
    let (backend, dead) = (Backend::echo().await, Backend::echo().await);
    let other = Backend::echo().await;
    let mut node = Node::start("a");
    node.publish(vec![unheld(echo(vec![local("e1", backend.address)]))]);
    let client = node.client().await;
    assert_eq!(client.put(b"x").await.status(), "0");
    assert_eq!(
        wanted(&mut node).await,
        "echo.default",
        "the others are wanted too"
    );

    let dead = local("e2", dead.kill().await);
    node.publish(vec![unheld(echo(vec![dead.clone()]))]);
    let waiting = client.clone();
    let call = tokio::spawn(async move { waiting.put(b"y").await });
    node.until("it waits", |m| m.waiting_calls == 1).await;
    node.publish(vec![echo(vec![dead, local("e3", other.address)])]);
    let reply = call.await.unwrap();
    assert_eq!(reply.status(), "0", "{}", reply.message());
    assert_eq!(other.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_claim_a_path_the_one_with_instances_is_found_by_asking_for_both() {
    let backend = Backend::echo().await;
    let mut node = Node::start("a");
    let old = || also("old", echo(vec![]));
    node.publish(vec![unheld(echo(vec![])), unheld(old())]);
    let waiting = node.client().await;
    let call = tokio::spawn(async move { waiting.get(b"x").await });
    let mut asked = [wanted(&mut node).await, wanted(&mut node).await];
    asked.sort();
    assert_eq!(asked, ["echo.default", "old.default"]);
    node.until("it waits", |m| m.waiting_calls == 1).await;
    node.publish(vec![
        echo(vec![local("e1", backend.address)]),
        unheld(old()),
    ]);
    node.until("it waits on", |m| m.waiting_calls == 1).await;
    node.publish(vec![echo(vec![local("e1", backend.address)]), old()]);
    assert_eq!(call.await.unwrap().status(), "0");
    // Both have some, and no order is known (an older control plane): ambiguous.
    let two = also("old", echo(vec![local("e2", backend.address)]));
    node.publish(vec![echo(vec![local("e1", backend.address)]), two]);
    let reply = node.client().await.get(b"x").await;
    assert_eq!(reply.reason(), "AMBIGUOUS_ROUTE");
}

/// Issue 10, B2: the owner of a path is asked for alone, and if it has no instance another claimant gets the call.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_path_gets_its_calls_and_while_it_has_no_instance_the_next_one_does() {
    let (owner, canary) = (Backend::echo().await, Backend::echo().await);
    let since = |mut service: Service, revision| {
        service.protos[0].claim = Some(Rank::Since(revision));
        service
    };
    let canaries = || vec![local("c1", canary.address)];
    let mut node = Node::start("a");
    let client = node.client().await;
    node.publish(vec![
        since(echo(vec![local("e1", owner.address)]), 7),
        since(also("a-canary", echo(canaries())), 9),
    ]);
    for _ in 0..10 {
        assert_eq!(client.put(b"x").await.status(), "0");
    }
    assert_eq!((owner.calls(), canary.calls()), (10, 0));

    // Its endpoints are not held any longer: whether it has any is found out first.
    let unknown = since(unheld(echo(vec![])), 7);
    let other = || since(also("a-canary", echo(canaries())), 9);
    node.publish(vec![unknown, other()]);
    let waiting = client.clone();
    let call = tokio::spawn(async move { waiting.put(b"x").await });
    assert_eq!(wanted(&mut node).await, "echo.default");
    node.until("it waits", |m| m.waiting_calls == 1).await;
    node.publish(vec![since(echo(vec![]), 7), other()]);
    let reply = call.await.unwrap();
    assert_eq!(reply.status(), "0", "{}", reply.message());
    assert_eq!((owner.calls(), canary.calls()), (10, 1));

    // Neither has any: the owner says so.
    let empty = since(also("a-canary", echo(vec![])), 9);
    node.publish(vec![since(echo(vec![]), 7), empty]);
    let reply = client.put(b"x").await;
    assert_eq!(reply.reason(), "NO_ENDPOINTS");
    assert!(
        reply.message().contains("echo.default"),
        "{}",
        reply.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_claims_no_path_is_named_to_who_calls_by_path() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    let mut quiet = echo(vec![local("e1", backend.address)]);
    quiet.protos[0].claim = None;
    node.publish(vec![quiet]);
    let reply = node.client().await.put(b"x").await;
    assert_eq!(reply.reason(), "NO_ROUTE");
    for words in ["claims the path of test.Echo", "-authority echo.default"] {
        assert!(reply.message().contains(words), "{}", reply.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_went_meanwhile_is_no_route_and_an_empty_one_has_no_endpoints() {
    let node = Node::start("a");
    let client = node.client().await;
    for (table, reason) in [(vec![], "NO_ROUTE"), (vec![echo(vec![])], "NO_ENDPOINTS")] {
        node.publish(vec![unheld(echo(vec![]))]);
        let waiting = client.clone();
        let call = tokio::spawn(async move { waiting.get(b"x").await });
        node.until("it waits", |m| m.waiting_calls == 1).await;
        node.publish(table);
        assert_eq!(call.await.unwrap().reason(), reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_and_uses_are_counted_and_go_with_the_service() {
    let backend = Backend::start(|request, mut respond| {
        Box::pin(async move {
            let code = if request.uri().path().ends_with("Get") {
                0
            } else {
                // gRPC's INTERNAL: an error, and no answer as NOT_FOUND is.
                13
            };
            let mut send = respond.send_response(ok_headers(), false).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.data().await {}
            send.send_trailers(status(code)).unwrap();
        })
    })
    .await;
    let mut near = local("e1", backend.address);
    (near.region, near.zone) = ("eu".into(), "eu-1".into());
    let node = Node::start("a");
    node.publish(vec![echo(vec![near])]);
    let client = node.client().await;
    for _ in 0..3 {
        assert_eq!(client.get(b"x").await.status(), "0");
    }
    assert_eq!(client.put(b"x").await.status(), "13");
    let (head, mut open) = client.open(request("Get").body(()).unwrap(), false).await;
    push(&mut open, "x".into()).await.unwrap();
    backend.until_calls(5).await;
    node.until("it is counted", |m| m.active_calls == 1).await;
    let used = node.workers.used();
    let of = used["echo.default"];
    assert_eq!((of.ended, of.in_progress), (4, 1));
    let taken = take_all(&node.workers.loads(), 9, |_| true);
    let load = taken["echo.default"][&("eu".into(), "eu-1".into())];
    let expect = Load {
        issued: 5,
        succeeded: 3,
        failed: 1,
        in_progress: 1,
        latency_us: load.latency_us,
    };
    assert_eq!(load, expect);
    assert!(load.latency_us > 0);

    let names = HashSet::from([Arc::<str>::from("echo.default")]);
    node.workers.forget(&Arc::new(names));
    node.until("it is forgotten", |m| m.calls.is_empty()).await;
    assert!(node.workers.loads().is_empty());
    // Called again it begins anew, and what was under way is no part of that.
    drop((head, open));
    assert_eq!(client.get(b"x").await.status(), "0");
    node.until("all ended", |m| m.active_calls == 0).await;
    let again = take_all(&node.workers.loads(), 9, |_| true);
    let sums: BTreeMap<_, _> = again["echo.default"]
        .values()
        .map(|l| (l.issued, l.failed))
        .collect();
    assert_eq!(sums, [(1, 0)].into());
}
