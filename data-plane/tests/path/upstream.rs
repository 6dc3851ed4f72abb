//! The life of upstream connections: idle ones are closed, silent peers are detected, cancels are limited.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use heddle_proto::link::v1::{HelloRequest, HelloResponse};
use heddle_proxy::balance::Target;
use heddle_proxy::observe::Counter;
use heddle_proxy::worker::WorkerOptions;
use prost::Message;

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_and_opened_again_on_demand() {
    let backend = Backend::echo().await;
    let node = Node::with(WorkerOptions {
        workers: 1,
        upstream_idle: Duration::from_millis(50),
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    for round in 1..=3 {
        assert_eq!(client.put(b"x").await.status(), "0");
        assert_eq!(backend.connections.load(Ordering::SeqCst), round);
        node.until("it is closed", |m| m.upstream_connections == 0)
            .await;
    }
    assert_eq!(node.workers.metrics().counter(Counter::BoundIdle), 3);
}

/// A peer proxy that takes the Hello and then plays dead.
async fn dead_peer() -> std::net::SocketAddr {
    each_connection(|mut connection| async move {
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.uri().path(), "/heddle.link.v1.Link/Hello");
        let answer = tokio::spawn(async move {
            let body = request.into_body().data().await.unwrap().unwrap();
            let hello = HelloRequest::decode(&body[5..]).unwrap();
            assert_eq!((hello.node.as_str(), hello.min_version), ("a", 1));
            let answer = HelloResponse {
                version: 1,
                node: "b".into(),
                incarnation: "x".into(),
            };
            let mut frame = vec![0, 0, 0, 0, u8::try_from(answer.encoded_len()).unwrap()];
            frame.extend(answer.encode_to_vec());
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            push(&mut stream, frame.into()).await;
            stream.send_trailers(status(0)).unwrap();
        });
        // The next stream shows that the answer went out; then nothing is read any more.
        let _call = connection.accept().await;
        answer.await.unwrap();
        std::future::pending::<()>().await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_silent_with_calls_on_it_is_given_up() {
    let peer = dead_peer().await;
    let node = Node::with(WorkerOptions {
        keepalive_interval: Duration::from_millis(100),
        // So long that the peer gets to say Hello first, even if the machine stalls.
        keepalive_timeout: Duration::from_secs(2),
        ..options("a")
    });
    node.publish(vec![echo(vec![endpoint("e", "b", Target::Node(peer))])]);
    let reply = node.client().await.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "CONNECTION_LOST"));
    assert!(
        reply.message().contains("keep-alive"),
        "{}",
        reply.message()
    );
    assert_eq!(node.workers.metrics().counter(Counter::KeepAliveLost), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_cancels_do_not_reach_one_server_at_once() {
    cancel_many(b"", false).await;
}

/// Issue 10, N1.
#[tokio::test(flavor = "multi_thread")]
async fn nor_do_cancels_of_requests_that_the_server_does_not_read() {
    // More than the server's window: the end of the request waits in the proxy.
    cancel_many(&[0; 66_000], true).await;
}

async fn cancel_many(body: &'static [u8], ended: bool) {
    // So many that some must wait, and not so many that the connection is given up for it.
    const CANCELLED: usize = 240;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let backend = Backend::start(move |_, mut respond| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            count.fetch_add(1, Ordering::SeqCst);
        })
    })
    .await;
    let node = Node::with(WorkerOptions {
        workers: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    // Keeps the connection in use.
    let (_held, _open) = client.open(request("Put").body(()).unwrap(), false).await;
    let mut streams = Vec::new();
    for _ in 0..CANCELLED {
        let (answer, mut send) = client.open(request("Put").body(()).unwrap(), false).await;
        if !body.is_empty() {
            within(push(&mut send, body.into())).await.unwrap();
        }
        if ended {
            send.send_data(bytes::Bytes::new(), true).unwrap();
        }
        streams.push((answer, send));
    }
    backend.until_calls(1 + CANCELLED).await;
    let start = Instant::now();
    for (_, send) in &mut streams {
        send.send_reset(h2::Reason::CANCEL);
    }
    within(async {
        while seen.load(Ordering::SeqCst) < CANCELLED {
            // A hundred go at once and fifty more in each second.
            let seen = seen.load(Ordering::SeqCst);
            let allowed = 101 + start.elapsed().as_millis() / 20;
            assert!(seen as u128 <= allowed, "{seen} instead of {allowed}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let metrics = node.workers.metrics();
    assert!(metrics.counter(Counter::BoundCancels) > 0, "{metrics:?}");
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_calls_that_hang_take_no_streams_from_others() {
    // Issue 10, A3: cancels that wait for their rate kept the streams of their server.
    const STREAMS: usize = 800;
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1200);
    let backend = Backend::with(builder, |request, mut respond| {
        Box::pin(async move {
            if request.uri().path().ends_with("Put") {
                return echo_answer(request, respond).await;
            }
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        })
    })
    .await;
    let node = Node::with(WorkerOptions {
        workers: 1,
        upstream_connections: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let (one, other) = (node.client().await, node.client().await);
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let client = if n % 2 == 0 { &one } else { &other };
        streams.push(client.open(request("Hang").body(()).unwrap(), false).await);
    }
    backend.until_calls(STREAMS).await;
    for (_, send) in &mut streams {
        send.send_reset(h2::Reason::CANCEL);
    }
    // A hundred cancels go at once. With the others in its way the connection is given up once it has no call.
    for _ in 0..10 {
        assert_eq!(one.put(b"x").await.status(), "0");
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 2);
    node.until("nothing is left", |m| {
        (m.active_calls, m.pending_calls) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_messages_pass_on_one_stream() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let (response, mut send) = client.open(request("Chat").body(()).unwrap(), false).await;
    let upload = tokio::spawn(async move {
        for i in 0..10_000u32 {
            push(&mut send, i.to_be_bytes().to_vec().into())
                .await
                .unwrap();
        }
        send.send_data(bytes::Bytes::new(), true).unwrap();
    });
    let reply = within(read_reply(response)).await.unwrap();
    upload.await.unwrap();
    let expect: Vec<u8> = (0..10_000u32).flat_map(u32::to_be_bytes).collect();
    assert_eq!(reply.status(), "0", "{}", reply.message());
    assert!(reply.body == expect, "in order and whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_cut_short_by_no_error_is_a_failure() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            stream
                .send_data(bytes::Bytes::from_static(b"part"), false)
                .unwrap();
            tokio::task::yield_now().await;
            stream.send_reset(h2::Reason::NO_ERROR);
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let reply = node.client().await.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("13", "UPSTREAM_RESET"));
}
