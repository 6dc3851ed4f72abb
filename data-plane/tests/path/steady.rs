//! Constant load with a record of every call: what goes away costs no call, or only those that it must.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use heddle_proxy::balance::{Endpoint, Health, Target};

use crate::fixture::*;

/// Calls one after the other on several streams until stopped; each way a call ended with how often.
struct Load {
    stop: Arc<AtomicBool>,
    /// How many calls have ended, by stream.
    ended: Arc<[AtomicUsize]>,
    tasks: tokio::task::JoinSet<BTreeMap<String, u32>>,
}

impl Load {
    /// Against backends that echo.
    fn start(client: &Client, method: &'static str, streams: usize) -> Self {
        Self::expecting(client, method, streams, str::to_owned)
    }

    fn expecting(
        client: &Client,
        method: &'static str,
        streams: usize,
        answer: fn(&str) -> String,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended: Arc<[AtomicUsize]> = (0..streams).map(|_| AtomicUsize::new(0)).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for stream in 0..streams {
            let (client, stop, ended) = (client.clone(), Arc::clone(&stop), Arc::clone(&ended));
            tasks.spawn(async move {
                let mut book = BTreeMap::new();
                while !stop.load(Ordering::SeqCst) {
                    let body = format!("stream {stream}");
                    let reply = client
                        .call(request(method).body(()).unwrap(), body.as_bytes())
                        .await;
                    let end = match reply {
                        Ok(reply)
                            if reply.status() == "0" && reply.body == answer(&body).as_bytes() =>
                        {
                            "ok".to_owned()
                        }
                        Ok(reply) => {
                            format!("{} {}: {}", reply.status(), reply.reason(), reply.message())
                        }
                        Err(error) => format!("{error:?}"),
                    };
                    *book.entry(end).or_default() += 1;
                    ended[stream].fetch_add(1, Ordering::SeqCst);
                }
                book
            });
        }
        Self { stop, ended, tasks }
    }

    /// Awaits that all calls that are under way have ended, and one more on each stream.
    async fn anew(&self) {
        let counts = || self.ended.iter().map(|count| count.load(Ordering::SeqCst));
        let before: Vec<_> = counts().collect();
        within(async {
            while counts().zip(&before).any(|(now, before)| now < before + 2) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    async fn finish(mut self) -> BTreeMap<String, u32> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = BTreeMap::new();
        while let Some(book) = within(self.tasks.join_next()).await {
            for (end, count) in book.unwrap() {
                *all.entry(end).or_default() += count;
            }
        }
        all
    }
}

/// Awaits that so many more calls have come to a backend.
async fn more_calls(backend: &Backend, more: usize) {
    backend.until_calls(backend.calls() + more).await;
}

fn only_ok(book: &BTreeMap<String, u32>) {
    assert_eq!(book.keys().collect::<Vec<_>>(), ["ok"], "{book:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_drains_and_goes_costs_no_call() {
    let (first, second) = (Backend::echo().await, Backend::echo().await);
    let node = Node::start("a");
    let (one, two) = (local("e1", first.address), local("e2", second.address));
    node.publish(vec![echo(vec![one.clone(), two.clone()])]);
    let client = node.client().await;
    let load = Load::start(&client, "Put", 16);
    more_calls(&first, 50).await;
    node.publish(vec![echo(vec![
        Endpoint {
            health: Health::Draining,
            ..one
        },
        two.clone(),
    ])]);
    // Its calls in flight end, and no new ones come.
    node.table_in_use().await;
    load.anew().await;
    let before = first.calls();
    node.publish(vec![echo(vec![two])]);
    node.table_in_use().await;
    load.anew().await;
    more_calls(&second, 50).await;
    assert_eq!(first.calls(), before, "none is sent there any more");
    first.kill().await;
    more_calls(&second, 50).await;
    only_ok(&load.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_an_instance_costs_only_calls_in_flight_that_are_not_replay_safe() {
    // Answers in one frame: a call is either not committed or over, so that every Get is replay-safe.
    let start = || Backend::start(|request, respond| Box::pin(one_frame(request, respond)));
    for (method, may_lose) in [("Get", false), ("Put", true)] {
        let (first, second) = (start().await, start().await);
        let node = Node::start("a");
        node.publish(vec![echo(vec![
            local("e1", first.address),
            local("e2", second.address),
        ])]);
        let client = node.client().await;
        let load = Load::expecting(&client, method, 8, |_| String::new());
        more_calls(&first, 50).await;
        first.kill().await;
        // The dead endpoint is still in the table: no call may find it.
        more_calls(&second, 200).await;
        let mut book = load.finish().await;
        book.remove("ok");
        let lost: u32 = book.values().sum();
        assert!(lost <= if may_lose { 8 } else { 0 }, "{method}: {book:#?}");
        assert!(
            book.keys()
                .all(|end| end.starts_with("14 CONNECTION_LOST: ")),
            "{method}: {book:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_costs_no_call() {
    let backend = Backend::echo().await;
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    let here = |node: &str| echo(vec![endpoint("e", node, Target::Local(backend.address))]);
    b.publish(vec![here("b")]);
    c.publish(vec![here("c")]);
    let to = |node: &Node| endpoint("e", &node.name, Target::Node(node.inbound));
    a.publish(vec![echo(vec![to(&b), to(&c)])]);
    let client = a.client().await;
    let load = Load::start(&client, "Put", 16);
    b.until("calls go there", |m| m.calls.iter().any(|s| s.total() > 20))
        .await;
    // Nobody tells node a: it learns from GOAWAY, and from the closed door.
    b.workers.drain();
    within(b.workers.drained()).await;
    drop(b);
    more_calls(&backend, 100).await;
    only_ok(&load.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_the_calls_of_one_caller() {
    let (first, second) = (Backend::echo().await, Backend::echo().await);
    let node = Node::start("a");
    node.publish(vec![echo(vec![
        local("e1", first.address),
        local("e2", second.address),
    ])]);
    let client = node.client().await;
    // Balanced by measured load, not by turns: one that was slow once gets little for a few seconds, and then its part.
    within(async {
        let mut share = 0;
        while !(40..=160).contains(&share) {
            let before = first.calls();
            for _ in 0..200 {
                assert_eq!(client.put(b"x").await.status(), "0");
            }
            share = first.calls() - before;
        }
    })
    .await;
}
