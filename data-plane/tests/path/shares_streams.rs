//! Shares of the streams to one instance or node (issue 10, A1c, A1d and A3): a flood delays nobody else, connections
//! are opened while calls wait, and an expired wait names the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use h2::client::ResponseFuture;
use heddle_proxy::balance::{Endpoint, Health, Target};
use heddle_proxy::observe::Counter;
use heddle_proxy::route::Service;
use heddle_proxy::worker::WorkerOptions;
use tokio::sync::{Semaphore, mpsc};

use crate::fixture::*;
use crate::wire::{CALL, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Wire, block, frame};

type OpenCalls = Vec<(ResponseFuture, h2::SendStream<bytes::Bytes>)>;

fn one_worker(name: &str) -> WorkerOptions {
    WorkerOptions {
        workers: 1,
        ..options(name)
    }
}

/// Echoes calls of `Put`; all others hang until they are reset.
async fn hanging(limit: Option<u32>) -> Backend {
    let mut builder = h2::server::Builder::new();
    if let Some(limit) = limit {
        builder.max_concurrent_streams(limit);
    }
    Backend::with(builder, |request, mut respond| {
        Box::pin(async move {
            if request.uri().path().ends_with("Put") {
                return echo_answer(request, respond).await;
            }
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        })
    })
    .await
}

/// Opens calls that hang.
async fn hang(client: &Client, uri: &str, count: usize) -> OpenCalls {
    let mut held = Vec::new();
    for _ in 0..count {
        let call = http::Request::post(uri).header("content-type", "application/grpc");
        held.push(client.open(call.body(()).unwrap(), false).await);
    }
    held
}

const ECHO_HANG: &str = "http://echo.default/test.Echo/Hang";

/// `slow.default`, beside `echo.default`.
fn slow(endpoints: Vec<Endpoint>) -> Service {
    let mut service = echo(endpoints);
    service.name = "slow.default".into();
    service.service = "slow".into();
    service.protos.clear();
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_to_one_service_leaves_streams_of_the_link_to_others() {
    // Issue 10, A1c.
    let (flooded, backend) = (hanging(None).await, Backend::echo().await);
    let (a, b) = (
        Node::with(WorkerOptions {
            upstream_connections: 1,
            ..one_worker("a")
        }),
        Node::with(one_worker("b")),
    );
    let there = |id: &str| vec![endpoint(id, "b", Target::Node(b.inbound))];
    a.publish(vec![slow(there("s1")), echo(there("e1"))]);
    b.publish(vec![
        slow(vec![endpoint("s1", "b", Target::Local(flooded.address))]),
        on_b("e1", backend.address),
    ]);
    // The one connection carries a thousand streams, and this caller wants all of them.
    let flood = a.client().await;
    let mut held = vec![hang(&flood, "http://slow.default/test.Slow/Hang", 1).await];
    flooded.until_calls(1).await;
    held.push(hang(&flood, "http://slow.default/test.Slow/Hang", 999).await);
    a.until("the rest waits", |m| {
        (m.active_calls, m.pending_calls) == (1000, 200)
    })
    .await;
    let client = a.client().await;
    for _ in 0..50 {
        let reply = client.put(b"x").await;
        assert_eq!(reply.status(), "0", "{}", reply.message());
    }
    let metrics = a.workers.metrics();
    assert!(metrics.counter(Counter::BoundStreamShare) > 0);
    assert_eq!(metrics.upstream_connections, 1);
    // Also another caller of the flooded service finds a stream.
    let reply = client.call(
        http::Request::post("http://slow.default/test.Slow/Put")
            .body(())
            .unwrap(),
        b"x",
    );
    assert_eq!(reply.await.unwrap().http_status, 200);
    drop(held);
    a.until("all is given back", |m| {
        (m.active_calls, m.pending_calls) == (0, 0)
    })
    .await;
    assert_eq!(client.put(b"x").await.status(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_over_a_link_leaves_streams_to_other_callers_of_its_node() {
    // Issue 10, A1: the other node took the share of this one caller for that of its node.
    let backend = hanging(Some(100)).await;
    let narrow = WorkerOptions {
        upstream_connections: 1,
        ..one_worker("b")
    };
    let (a, b) = (Node::with(one_worker("a")), Node::with(narrow));
    a.publish(vec![remote("e1", &b)]);
    b.publish(vec![on_b("e1", backend.address)]);
    let flood = a.client().await;
    let mut held = vec![hang(&flood, ECHO_HANG, 1).await];
    // The instance has announced by now how many streams it allows.
    backend.until_calls(1).await;
    held.push(hang(&flood, ECHO_HANG, 199).await);
    b.until("the rest waits there", |m| {
        (m.active_calls, m.pending_calls) == (200, 120)
    })
    .await;
    let client = a.client().await;
    for _ in 0..20 {
        let reply = client.put(b"x").await;
        assert_eq!(reply.status(), "0", "{}", reply.message());
    }
    assert_eq!(b.workers.metrics().pending_calls, 120);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_opened_as_long_as_calls_wait() {
    // Issue 10, A1d: Kestrel allows a hundred streams on a connection.
    const LONG_STREAMS: usize = 1200;
    let backend = hanging(Some(100)).await;
    let node = Node::with(one_worker("a"));
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let clients = [node.client().await, node.client().await];
    // A caller with few calls at a time needs one.
    for _ in 0..50 {
        assert_eq!(clients[0].put(b"x").await.status(), "0");
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
    let mut held = Vec::new();
    for n in 0..LONG_STREAMS / 100 {
        held.push(hang(&clients[n % 2], ECHO_HANG, 100).await);
        backend.until_calls(50 + 100 * (n + 1)).await;
    }
    for client in &clients {
        assert_eq!(client.put(b"x").await.status(), "0");
    }
    let connections = backend.connections.load(Ordering::SeqCst);
    assert!((13..=16).contains(&connections), "{connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_was_too_long_names_the_limit() {
    let backend = hanging(Some(2)).await;
    let node = Node::with(WorkerOptions {
        upstream_connections: 2,
        pending_timeout: Duration::from_millis(300),
        ..one_worker("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let _held = hang(&client, ECHO_HANG, 4).await;
    backend.until_calls(4).await;
    let reply = client.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "OVERLOADED"));
    let expect = format!(
        "waited 300ms for a free stream to instance e1 of echo.default on node a ({}): all 2 connections have the \
         limit of 2 streams in use; --upstream-connections",
        backend.address
    );
    assert_eq!(reply.message(), expect);
    let call = request("Put").header("grpc-timeout", "100m").body(());
    let reply = client.call(call.unwrap(), b"x").await.unwrap();
    assert_eq!(reply.reason(), "DEADLINE_EXCEEDED");
    let waited = "while it waited for a free stream to instance e1";
    assert!(reply.message().contains(waited), "{}", reply.message());
    let metrics = node.workers.metrics();
    assert_eq!(metrics.counter(Counter::BoundPendingTimeout), 1);
    assert_eq!(metrics.counter(Counter::BoundUpstreamStreams), 2);
    assert!(
        metrics
            .prometheus()
            .contains(r#"heddle_bounds_hit_total{bound="pending_timeout"} 1"#)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_node_hands_the_call_back_for_another_instance() {
    let (busy, free) = (hanging(Some(1)).await, Backend::echo().await);
    let narrow = |name: &str| WorkerOptions {
        upstream_connections: 1,
        // So long that the other instance is published in time, even if the machine stalls.
        pending_timeout: Duration::from_secs(3),
        ..one_worker(name)
    };
    let (a, b) = (Node::with(one_worker("a")), Node::with(narrow("b")));
    let c = Node::with(one_worker("c"));
    b.publish(vec![on_b("e1", busy.address)]);
    c.publish(vec![echo(vec![endpoint(
        "e2",
        "c",
        Target::Local(free.address),
    )])]);
    let first = endpoint("e1", "b", Target::Node(b.inbound));
    a.publish(vec![echo(vec![first.clone()])]);
    let client = a.client().await;
    let _held = hang(&client, ECHO_HANG, 1).await;
    busy.until_calls(1).await;
    // There is no other instance: the caller gets the answer of the other proxy at once.
    let reply = client.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "OVERLOADED"));
    let why = "instance e1 of echo.default on node b";
    assert!(reply.message().contains(why), "{}", reply.message());
    assert_eq!(reply.get("heddle-unprocessed"), "");
    assert_eq!(b.workers.metrics().counter(Counter::BoundPendingTimeout), 1);

    let waiting = tokio::spawn(async move { client.put(b"y").await });
    b.until("it waits there", |m| m.pending_calls == 1).await;
    let second = Endpoint {
        health: Health::Healthy,
        ..endpoint("e2", "c", Target::Node(c.inbound))
    };
    a.publish(vec![echo(vec![first, second])]);
    let reply = waiting.await.unwrap();
    assert_eq!(reply.status(), "0", "{}", reply.message());
    assert_eq!((reply.body.as_slice(), free.calls()), (&b"y"[..], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_calls_are_served_by_caller_in_turn() {
    let gate = Arc::new(Semaphore::new(0));
    let (send, mut served) = mpsc::unbounded_channel();
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let opened = Arc::clone(&gate);
    let backend = Backend::with(builder, move |request, respond| {
        let (gate, send) = (Arc::clone(&gate), send.clone());
        Box::pin(async move {
            let who = request.headers()["who"].to_str().unwrap().to_owned();
            gate.acquire().await.unwrap().forget();
            send.send(who).unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    let node = Node::with(WorkerOptions {
        upstream_connections: 1,
        ..one_worker("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let mut calls = tokio::task::JoinSet::new();
    let mut begun = 0;
    for (who, count) in [("flood", 60), ("second", 2), ("third", 1)] {
        let client = node.client().await;
        for _ in 0..count {
            let (client, call) = (client.clone(), request("Put").header("who", who));
            calls.spawn(async move { client.call(call.body(()).unwrap(), b"x").await.unwrap() });
            begun += 1;
            node.until("it has come", |m| m.active_calls == begun).await;
        }
    }
    opened.add_permits(1000);
    let mut order = Vec::new();
    while let Some(reply) = calls.join_next().await {
        assert_eq!(reply.unwrap().status(), "0");
        order.push(served.recv().await.unwrap());
    }
    assert_eq!(
        order[..7],
        [
            "flood", "flood", "second", "third", "flood", "second", "flood"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_many_deadlines_is_not_cut_off() {
    // Issue 10, A3: more resets than a hundred a second, of streams that lived for a while.
    let backend = hanging(None).await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        let (_other, _kept) = client.open(request("Hang").body(()).unwrap(), false).await;
        let before = backend.calls();
        for round in 1..=12 {
            let mut held = hang(&client, ECHO_HANG, 100).await;
            backend.until_calls(before + round * 100).await;
            // What a deadline is at least.
            tokio::time::sleep(Duration::from_millis(40)).await;
            for (_, send) in &mut held {
                send.send_reset(h2::Reason::CANCEL);
            }
        }
        assert_eq!(client.put(b"x").await.status(), "0", "{way}");
        nodes[0]
            .until("the first call goes on", |m| m.active_calls == 1)
            .await;
        for node in &nodes {
            let floods = node.workers.metrics().counter(Counter::BoundFloods);
            assert_eq!(floods, 0, "{way}: node {}", node.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancels_of_many_callers_do_not_cut_off_the_link() {
    // Issue 10, A3: each caller is within the bound, and together they are far over it.
    const EACH: usize = 700;
    let ended = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let mut builder = h2::server::Builder::new();
    // It would close a connection with 20 streams that were reset before it came to accept them.
    builder.max_pending_accept_reset_streams(10_000);
    let backend = Backend::with(builder, move |request, mut respond| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            if request.uri().path().ends_with("Keep") {
                return echo_answer(request, respond).await;
            }
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            count.fetch_add(1, Ordering::SeqCst);
        })
    })
    .await;
    let (a, b) = (Node::with(one_worker("a")), Node::with(one_worker("b")));
    a.publish(vec![remote("e1", &b)]);
    b.publish(vec![on_b("e1", backend.address)]);
    let client = a.client().await;
    let (kept, mut keep) = client.open(request("Keep").body(()).unwrap(), false).await;
    backend.until_calls(1).await;
    for _ in 0..4 {
        let mut wire = Wire::connect(a.outbound).await;
        let mut bytes = Vec::new();
        for n in 0..u32::try_from(EACH).unwrap() {
            let id = 2 * n + 1;
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &block(&CALL)));
            bytes.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
        }
        wire.send(&bytes).await;
        a.until("they are cancelled", |m| m.active_calls == 1).await;
    }
    b.until("they have ended there", |m| m.active_calls == 1)
        .await;
    keep.send_data(bytes::Bytes::new(), true).unwrap();
    let reply = within(read_reply(kept)).await.unwrap();
    assert_eq!(reply.status(), "0", "beside them: {}", reply.message());
    for node in [&a, &b] {
        let floods = node.workers.metrics().counter(Counter::BoundFloods);
        assert_eq!(floods, 0, "node {}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rapid_reset_attack_is_cut_off() {
    let backend = hanging(None).await;
    let node = Node::with(one_worker("a"));
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let mut wire = Wire::connect(node.outbound).await;
    let mut bytes = Vec::new();
    for n in 0..1500u32 {
        let id = 2 * n + 1;
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &block(&CALL)));
        bytes.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
    }
    wire.send(&bytes).await;
    let goodbye = loop {
        let frame = wire.frame().await.unwrap();
        if frame.kind == GOAWAY {
            break frame;
        }
    };
    assert_eq!(goodbye.code(), heddle_h2::ErrorCode::ENHANCE_YOUR_CALM);
    node.until("it is counted", |m| m.counter(Counter::BoundFloods) == 1)
        .await;
}
