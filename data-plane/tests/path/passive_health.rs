//! Instances that accept calls and do not answer, beside one that does (issue 10, A5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_proxy::balance::{Endpoint, Target, passive};
use heddle_proxy::observe::Counter;
use heddle_proxy::worker::WorkerOptions;
use tokio::sync::Semaphore;

use crate::fixture::*;

fn one_worker(name: &str) -> WorkerOptions {
    WorkerOptions {
        workers: 1,
        ..options(name)
    }
}

/// Answers no call until it is released.
async fn hung() -> (Backend, Arc<Semaphore>) {
    let released = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&released);
    let backend = Backend::start(move |request, respond| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            drop(gate.acquire().await.unwrap());
            echo_answer(request, respond).await;
        })
    })
    .await;
    (backend, released)
}

/// The caller's node and what it is to know: both instances here, or both behind another node.
fn paths(hung: &Backend, well: &Backend) -> Vec<(&'static str, Vec<Node>, Vec<Endpoint>)> {
    let both = [("hung", hung.address), ("well", well.address)];
    let near = Node::with(one_worker("a"));
    let (a, b) = (Node::with(one_worker("a")), Node::with(one_worker("b")));
    b.publish(vec![echo(
        both.map(|(id, address)| endpoint(id, "b", Target::Local(address)))
            .into(),
    )]);
    let far = both.map(|(id, _)| endpoint(id, "b", Target::Node(b.inbound)));
    let here = both.map(|(id, address)| local(id, address));
    vec![
        ("one hop", vec![near], here.into()),
        ("two hops", vec![a, b], far.into()),
    ]
}

/// Who sees first that a call's deadline has passed.
#[derive(Clone, Copy, Debug)]
enum Clock {
    Proxy,
    /// As gRPC's clients do, which cancel the call then.
    Caller,
}

/// A call with a deadline. It fails, or is answered with OK.
async fn call_with_deadline(client: Client, clock: Clock) {
    let call = request("Put").header("grpc-timeout", "100m");
    let (response, mut send) = client.open(call.body(()).unwrap(), false).await;
    send.send_data(bytes::Bytes::new(), true).unwrap();
    let reply = read_reply(response);
    let reply = match clock {
        Clock::Proxy => within(reply).await,
        Clock::Caller => {
            let own = tokio::time::timeout(Duration::from_millis(97), reply).await;
            let Ok(reply) = own else {
                return send.send_reset(h2::Reason::CANCEL);
            };
            reply
        }
    };
    let reply = reply.unwrap();
    assert!(matches!(reply.status(), "0" | "4"), "{}", reply.message());
}

/// Calls with a deadline, `callers` at once, until the instance is ejected.
async fn call_until_ejected(node: &Node, uid: u64, callers: usize, clock: Clock) {
    let client = node.client().await;
    let begun = Instant::now();
    while node.workers.metrics().ejected_by(uid) == 0 {
        assert!(begun.elapsed() < LONG, "it is never ejected");
        let calls = (0..callers).map(|_| call_with_deadline(client.clone(), clock));
        let tasks: Vec<_> = calls.map(tokio::spawn).collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_answers_nothing_leaves_the_choice_until_it_answers_again() {
    for (callers, clock) in [(1, Clock::Proxy), (8, Clock::Proxy), (8, Clock::Caller)] {
        let ((hung, release), well) = (hung().await, Backend::echo().await);
        for (way, nodes, endpoints) in paths(&hung, &well) {
            let (node, uid) = (&nodes[0], endpoints[0].uid);
            node.publish(vec![echo(endpoints)]);
            call_until_ejected(node, uid, callers, clock).await;
            let metrics = node.workers.metrics();
            let text = metrics.prometheus();
            assert!(
                text.contains("heddle_ejected_instances{service=\"echo.default\"} 1"),
                "{way}: {text}"
            );
            assert!(metrics.counter(Counter::Ejections) >= 1, "{way}");

            // Calls without a deadline, which would hang there: none does but those that probe it.
            let (client, began) = (node.client().await, Instant::now());
            let (answered, probes) = (Arc::new(Semaphore::new(0)), hung.calls());
            let calls: Vec<_> = (0..200)
                .map(|_| {
                    let (client, answered) = (client.clone(), Arc::clone(&answered));
                    tokio::spawn(async move {
                        let reply = client.put(b"x").await;
                        answered.add_permits(1);
                        reply.status().to_owned()
                    })
                })
                .collect();
            // At most one in each time between two probes.
            let most = || {
                1 + (began.elapsed().as_millis() / (passive::FIRST_EJECTION * 8 / 10).as_millis())
            };
            within(async {
                while answered.available_permits() + usize::try_from(most()).unwrap() < 200 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
            .await;
            let probed = (hung.calls() - probes) as u128;
            assert!(probed <= most(), "{way}: {probed} calls went there");

            // It answers again: whoever probes it finds out.
            release.add_permits(1);
            within(async {
                while node.workers.metrics().ejected_by(uid) > 0 {
                    assert_eq!(client.put(b"x").await.status(), "0", "{way}");
                }
            })
            .await;
            for call in calls {
                assert_eq!(call.await.unwrap(), "0", "{way}");
            }
            let before = hung.calls();
            within(async {
                while hung.calls() == before {
                    assert_eq!(client.put(b"x").await.status(), "0", "{way}");
                }
            })
            .await;
            release.forget_permits(1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_which_nothing_answers_keeps_half_of_its_instances() {
    let ((first, _), (second, _)) = (hung().await, hung().await);
    let node = Node::with(one_worker("a"));
    let endpoints = [&first, &second].map(|backend| local("e", backend.address));
    let uids = endpoints.clone().map(|endpoint| endpoint.uid);
    node.publish(vec![echo(endpoints.into())]);
    let client = node.client().await;
    let out = || {
        let metrics = node.workers.metrics();
        uids.map(|uid| metrics.ejected_by(uid))
            .iter()
            .sum::<usize>()
    };
    let mut calls = 0;
    while out() == 0 || calls < 40 {
        let call = request("Put").header("grpc-timeout", "50m");
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        assert_eq!(reply.status(), "4");
        assert!(out() <= 1, "one of two stays in");
        calls += 1;
    }
}
