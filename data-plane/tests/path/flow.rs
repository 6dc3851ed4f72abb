//! Flow control from end to end, and the limits that a server announces.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use heddle_proxy::observe::Counter;
use tokio::sync::Semaphore;

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_does_not_stop_its_neighbours_and_its_server_is_stopped() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let backend = Backend::start(move |request, mut respond| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            if !request.uri().path().ends_with("Flood") {
                return echo_answer(request, respond).await;
            }
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            while push(&mut stream, Bytes::from(vec![7; 8192]))
                .await
                .is_some()
            {
                count.fetch_add(8192, Ordering::SeqCst);
            }
        })
    })
    .await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(65_535)
        .initial_connection_window_size(1 << 22);
    let socket = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let client = Client::build(&builder, socket).await;
    let (response, _send) = client.open(request("Flood").body(()).unwrap(), true).await;
    // Its body is never read.
    let _stalled = within(response).await.unwrap();
    for round in 0..200 {
        assert_eq!(
            client.get(&vec![1; 10_000]).await.body.len(),
            10_000,
            "round {round}"
        );
    }
    let flooded = sent.load(Ordering::SeqCst);
    assert!(
        flooded < 1 << 20,
        "the server could send {flooded} bytes that nobody takes"
    );
    let held = node.workers.metrics().buffered_bytes;
    assert!(held < 1 << 20, "{held} bytes are held for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_slows_its_caller_and_loses_nothing() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let backend = Backend::start(move |request, mut respond| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            let _open = gate.acquire().await.unwrap();
            let mut body = request.into_body();
            let mut total = 0;
            while let Some(Ok(data)) = body.data().await {
                total += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            stream
                .send_data(Bytes::from(total.to_string()), false)
                .unwrap();
            stream.send_trailers(status(0)).unwrap();
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let call = tokio::spawn(async move { client.put(&vec![3; 5 << 20]).await });
    // Until the caller is stopped: what is held grows no more.
    let (mut held, mut same) = (0, 0);
    while held < 32 << 10 || same < 40 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = node.workers.metrics().buffered_bytes;
        same = if now == held { same + 1 } else { 0 };
        held = now;
    }
    assert!(
        held < 2 << 20,
        "{held} bytes are held of a caller that should have been stopped"
    );
    opened.add_permits(1);
    assert_eq!(call.await.unwrap().body, (5 << 20).to_string().as_bytes());
    node.until("nothing is held", |m| m.buffered_bytes == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_at_a_time_is_honoured_by_queueing_and_a_few_connections() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let backend = Backend::with(builder, move |request, respond| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            echo_answer(request, respond).await;
        })
    })
    .await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..60u32 {
        let client = client.clone();
        tasks.spawn(async move { (i, client.put(&i.to_be_bytes()).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (i, reply) = done.unwrap();
        assert_eq!(
            (reply.status(), reply.body.as_slice()),
            ("0", &i.to_be_bytes()[..])
        );
    }
    assert_eq!(backend.calls(), 60, "none was refused and sent again");
    let connections = backend.connections.load(Ordering::SeqCst);
    assert!((2..=16).contains(&connections), "{connections} connections");
    assert!(
        seen.load(Ordering::SeqCst) <= connections,
        "no connection has two at a time"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_waiting_calls_than_the_bound_are_refused() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let backend = Backend::with(builder, move |request, respond| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            let _open = gate.acquire().await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        pending_calls: 5,
        upstream_connections: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let mut tasks = tokio::task::JoinSet::new();
    let first = client.clone();
    tasks.spawn(async move { first.put(b"x").await });
    while backend.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = node.client().await;
    // One caller leaves the last of five places to others.
    for (client, waiting, why) in [
        (
            &client,
            4,
            "4 calls of the caller's connection already wait",
        ),
        (&other, 5, "5 calls already wait"),
    ] {
        while node.workers.metrics().pending_calls < waiting {
            let client = client.clone();
            let before = node.workers.metrics().active_calls;
            tasks.spawn(async move { client.put(b"x").await });
            node.until("one more waits", |m| m.active_calls == before + 1)
                .await;
        }
        let reply = client.put(b"x").await;
        assert_eq!(
            (reply.status(), reply.reason()),
            ("14", "OVERLOADED"),
            "{}",
            reply.message()
        );
        assert!(reply.message().starts_with(why), "{}", reply.message());
    }
    opened.add_permits(1);
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap().status(), "0");
    }
    for bound in [Counter::BoundPending, Counter::BoundPendingShare] {
        assert_eq!(node.workers.metrics().counter(bound), 1, "{bound:?}");
    }
    node.until("none waits", |m| m.pending_calls == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_the_proxy_itself_are_bounded_too() {
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        pending_calls: 2,
        ..options("a")
    });
    let client = node.client().await;
    // No table has come, and nobody takes the connection for health calls.
    let paths = ["/test.Echo/Put", "/grpc.health.v1.Health/Check"];
    let mut waiting = Vec::new();
    for path in paths {
        let call = || {
            http::Request::post(format!("http://127.0.0.1{path}"))
                .header("content-type", "application/grpc")
                .body(())
                .unwrap()
        };
        for _ in 0..2 {
            waiting.push(client.open(call(), true).await);
        }
        node.until("all wait", |m| m.active_calls == waiting.len())
            .await;
        let reply = client.call(call(), b"").await.unwrap();
        assert_eq!(
            (reply.status(), reply.reason()),
            ("14", "OVERLOADED"),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_worker_ends_the_calls_that_fill_it() {
    let backend = Backend::start(|request, _respond| {
        Box::pin(async move {
            let _unread = request.into_body();
            std::future::pending::<()>().await;
        })
    })
    .await;
    let bound = 200_000;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        buffered_bytes: bound,
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (response, send) = client.open(request("Put").body(()).unwrap(), false).await;
        calls.spawn(async move {
            let mut send = send;
            let upload = async {
                let _ = push(&mut send, vec![1; 100_000].into()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                reply = read_reply(response) => reply.unwrap(),
                () = upload => unreachable!(),
            }
        });
    }
    let reply = within(calls.join_next()).await.unwrap().unwrap();
    assert_eq!(
        (reply.status(), reply.reason()),
        ("14", "OVERLOADED"),
        "{}",
        reply.message()
    );
    let held = node.workers.metrics().buffered_bytes;
    // An eighth above the bound is the reserve of callers that hold little, and one read may end above all.
    assert!(
        held <= bound + bound / 8 + 128 * 1024,
        "{held} bytes are held"
    );
}
