//! Callers that do not read: nobody else waits for them, and their buffered data is bounded and dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use heddle_proxy::observe::Counter;
use heddle_proxy::worker::WorkerOptions;
use tokio::sync::{Notify, Semaphore};

use crate::fixture::*;

fn one_worker() -> WorkerOptions {
    WorkerOptions {
        workers: 1,
        ..options("a")
    }
}

/// A caller whose windows take no more than a thousand bytes of a response that it does not read.
async fn narrow(node: &Node) -> Client {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1000);
    let socket = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    Client::build(&builder, socket).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_read_keeps_no_room_of_its_server() {
    let answer = Arc::new(Notify::new());
    let answers = Arc::clone(&answer);
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let backend = Backend::with(builder, move |request, mut respond| {
        let answers = Arc::clone(&answers);
        Box::pin(async move {
            if !request.uri().path().ends_with("Long") {
                return echo_answer(request, respond).await;
            }
            answers.notified().await;
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            stream.send_data(vec![7; 30_000].into(), false).unwrap();
            stream.send_trailers(status(0)).unwrap();
        })
    })
    .await;
    let node = Node::with(WorkerOptions {
        upstream_connections: 1,
        ..one_worker()
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let slow = narrow(&node).await;
    let (response, _send) = slow.open(request("Long").body(()).unwrap(), true).await;
    backend.until_calls(1).await;
    let other = node.client().await;
    let next = tokio::spawn(async move { other.put(b"x").await });
    node.until("the next call waits for the only stream", |m| {
        m.pending_calls == 1
    })
    .await;
    answer.notify_one();
    let unread = within(response).await.unwrap();
    assert_eq!(next.await.unwrap().status(), "0");
    node.until("the slow one has still to take its answer", |m| {
        m.active_calls == 1
    })
    .await;
    let mut body = unread.into_body();
    let mut len = 0;
    while let Some(data) = within(body.data()).await {
        let data = data.unwrap();
        len += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(len, 30_000);
    assert_eq!(
        within(body.trailers()).await.unwrap().unwrap()["grpc-status"],
        "0"
    );
    node.until("nothing is held", |m| {
        (m.buffered_bytes, m.active_calls) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_that_breaks_off_leaves_nothing_behind() {
    let broken = Arc::new(Notify::new());
    let breaks = Arc::clone(&broken);
    let backend = Backend::start(move |_, mut respond| {
        let breaks = Arc::clone(&breaks);
        Box::pin(async move {
            let mut stream = respond
                .send_response(http::Response::new(()), false)
                .unwrap();
            stream.send_data(vec![7; 30_000].into(), false).unwrap();
            breaks.notified().await;
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
        })
    })
    .await;
    let node = Node::with(one_worker());
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let slow = narrow(&node).await;
    let plain = http::Request::get("http://echo.default/test.Echo/Page")
        .body(())
        .unwrap();
    let (response, _send) = slow.open(plain, true).await;
    let unread = within(response).await.unwrap();
    node.until("the caller's window is full", |m| {
        m.buffered_bytes >= 29_000
    })
    .await;
    broken.notify_one();
    node.until("the call has ended, and nothing is held", |m| {
        (m.active_calls, m.buffered_bytes) == (0, 0)
    })
    .await;
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_waits_for_its_turn_stops_its_server_all_the_same() {
    // A hundred go at once and fifty more in each second: these come together in less than two.
    const CANCELLED: usize = 220;
    let sent = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicUsize::new(0));
    let (count, ends) = (Arc::clone(&sent), Arc::clone(&over));
    let backend = Backend::start(move |_, mut respond| {
        let (count, ends) = (Arc::clone(&count), Arc::clone(&ends));
        Box::pin(async move {
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            while push(&mut stream, Bytes::from(vec![7; 8192]))
                .await
                .is_some()
            {
                count.fetch_add(8192, Ordering::SeqCst);
            }
            ends.fetch_add(1, Ordering::SeqCst);
        })
    })
    .await;
    let node = Node::with(one_worker());
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let slow = narrow(&node).await;
    let mut streams = Vec::new();
    for _ in 0..CANCELLED {
        streams.push(slow.open(request("Flood").body(()).unwrap(), true).await);
    }
    backend.until_calls(CANCELLED).await;
    for (_, send) in &mut streams {
        send.send_reset(h2::Reason::CANCEL);
    }
    within(async {
        while over.load(Ordering::SeqCst) < CANCELLED {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(node.workers.metrics().counter(Counter::BoundCancels) > 0);
    let flooded = sent.load(Ordering::SeqCst);
    assert!(
        flooded <= CANCELLED * 80_000,
        "{flooded} bytes were let through for callers that are gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn header_lists_that_nobody_reads_wait_and_are_bounded() {
    const BOUND: usize = 4 << 20;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let backend = Backend::start(move |_, mut respond| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            let _open = gate.acquire().await.unwrap();
            let mut response = ok_headers();
            let long = http::HeaderValue::from_bytes(&[b'~'; 15_000]).unwrap();
            response.headers_mut().insert("x-long", long.clone());
            response.headers_mut().insert("x-longer", long);
            let mut stream = respond.send_response(response, false).unwrap();
            let _ = stream.send_trailers(status(0));
        })
    })
    .await;
    let node = Node::with(WorkerOptions {
        buffered_bytes: BOUND,
        ..one_worker()
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let socket = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    let (send, mut connection) = h2::client::handshake(socket).await.unwrap();
    let pause = Arc::new(Notify::new());
    let paused = Arc::clone(&pause);
    let caller = tokio::spawn(async move {
        tokio::select! {
            _ = &mut connection => {}
            () = paused.notified() => std::future::pending().await,
        }
    });
    let mut calls = Vec::new();
    for _ in 0..900 {
        let mut send: h2::client::SendRequest<Bytes> = send.clone().ready().await.unwrap();
        calls.push(send.send_request(request("Put").body(()).unwrap(), true));
    }
    backend.until_calls(900).await;
    pause.notify_one();
    opened.add_permits(900);
    let metrics = node
        .until("calls are ended for what their caller does not read", |m| {
            m.counter(Counter::BoundCallerShare) > 0
        })
        .await;
    assert!(metrics.buffered_bytes <= BOUND + 64 * 1024);
    assert_eq!(
        metrics.counter(Counter::BoundOutput),
        0,
        "the connection lives"
    );
    caller.abort();
}
