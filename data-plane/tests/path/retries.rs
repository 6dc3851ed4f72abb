//! Upstream failures: retried where that is safe, else reported with the exact cause.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use heddle_proxy::observe::Counter;
use heddle_proxy::worker::Report;

use crate::fixture::*;
use crate::wire::{self, Wire};

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_refuses_costs_no_call_and_is_reported() {
    let backend = Backend::echo().await;
    let mut node = Node::start("a");
    let dead = local("dead", refusing().await);
    let uid = dead.uid;
    node.publish(vec![echo(vec![dead, local("e1", backend.address)])]);
    let client = node.client().await;
    for _ in 0..40 {
        assert_eq!(client.put(b"x").await.status(), "0");
    }
    assert_eq!(
        within(node.reports.recv()).await.unwrap(),
        Report::EndpointRefused { uid }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_with_the_address() {
    let node = Node::start("a");
    let address = refusing().await;
    node.publish(vec![echo(vec![local("e1", address)])]);
    let reply = node.client().await.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "CONNECT_FAILED"));
    assert!(
        reply.message().contains(&address.to_string()),
        "{}",
        reply.message()
    );
    assert!(
        reply
            .message()
            .contains("instance e1 of echo.default on node a"),
        "{}",
        reply.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_stream_is_sent_again_whatever_its_method_and_whole() {
    let refuser = Backend::start(|_, mut respond| {
        Box::pin(async move { respond.send_reset(h2::Reason::REFUSED_STREAM) })
    })
    .await;
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![
        local("r", refuser.address),
        local("e", backend.address),
    ])]);
    let client = node.client().await;
    let body = vec![5; 30_000];
    for _ in 0..30 {
        let reply = client.put(&body).await;
        assert_eq!(reply.status(), "0");
        assert!(
            reply.body == body,
            "the body is sent again from its first byte"
        );
    }
    assert_eq!(backend.calls(), 30);
    assert!(refuser.calls() > 0);
    let retries = node.workers.metrics().counter(Counter::RetriesSafe);
    assert_eq!(retries, refuser.calls() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_above_a_goaway_are_sent_again() {
    // Takes one call per connection: says goodbye with the first, which goes on.
    let address = each_connection(|mut connection| async move {
        if let Some(Ok((request, respond))) = connection.accept().await {
            connection.graceful_shutdown();
            tokio::spawn(echo_answer(request, respond));
        }
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(echo_answer(request, respond));
        }
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", address)])]);
    let client = node.client().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        tasks.spawn(async move { client.put(b"x").await });
    }
    while let Some(reply) = tasks.join_next().await {
        let reply = reply.unwrap();
        assert_eq!(reply.status(), "0", "{}", reply.message());
    }
}

/// A server that takes so many calls of each connection and retires it then; what came beyond is above its GOAWAY.
async fn retires_after(calls: usize) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind((own_host(), 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut server = Wire::accept(&listener).await;
            tokio::spawn(async move {
                let mut last = 0;
                for _ in 0..calls {
                    // Requests without a body: each is one frame.
                    let Some(frame) = server.frame().await else {
                        return;
                    };
                    if frame.kind != wire::HEADERS {
                        continue;
                    }
                    last = frame.stream;
                    let ends = wire::END_HEADERS | wire::END_STREAM;
                    let answer = [
                        (":status", "200"),
                        ("content-type", "application/grpc"),
                        ("grpc-status", "0"),
                    ];
                    let answer = wire::frame(wire::HEADERS, ends, last, &wire::block(&answer));
                    server.send(&answer).await;
                }
                let goodbye = [last.to_be_bytes(), [0; 4]].concat();
                server
                    .send(&wire::frame(wire::GOAWAY, 0, 0, &goodbye))
                    .await;
                while server.frame().await.is_some() {}
            });
        }
    });
    address
}

async fn bodiless(client: &Client, timeout: Option<&str>) -> Reply {
    let mut call = request("Put");
    if let Some(timeout) = timeout {
        call = call.header("grpc-timeout", timeout);
    }
    let (response, _send) = client.open(call.body(()).unwrap(), true).await;
    within(read_reply(response)).await.unwrap()
}

/// Issue 10, A6.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_an_instance_refuses_go_on_within_their_deadline() {
    // Far more at once than a connection takes: most are refused several times.
    for (way, nodes, service) in paths(retires_after(4).await) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let client = client.clone();
            tasks.spawn(async move { bodiless(&client, Some("50S")).await });
        }
        while let Some(reply) = tasks.join_next().await {
            let reply = reply.unwrap();
            assert_eq!(reply.status(), "0", "{way}: {}", reply.message());
        }
    }
}

/// Issue 10, A6.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_everything_is_not_asked_for_ever() {
    for (way, nodes, service) in paths(retires_after(0).await) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        let reply = bodiless(&client, None).await;
        let outcome = (reply.status(), reply.reason());
        assert_eq!(
            outcome,
            ("14", "UPSTREAM_RESET"),
            "{way}: {}",
            reply.message()
        );
        let reply = bodiless(&client, Some("700m")).await;
        let outcome = (reply.status(), reply.reason());
        assert_eq!(outcome, ("4", "DEADLINE_EXCEEDED"), "{way}");
    }
}

async fn holds_calls() -> (Backend, tokio::sync::mpsc::Receiver<()>) {
    let (send, arrived) = tokio::sync::mpsc::channel(64);
    let backend = Backend::start(move |request, mut respond| {
        let send = send.clone();
        Box::pin(async move {
            let mut stream = None;
            if request.uri().path().ends_with("Streaming") {
                let mut open = respond.send_response(ok_headers(), false).unwrap();
                open.send_data(Bytes::from_static(b"first"), false).unwrap();
                stream = Some(open);
            }
            send.send(()).await.unwrap();
            std::future::pending::<()>().await;
            drop(stream);
        })
    })
    .await;
    (backend, arrived)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_on_a_killed_instance_end_precisely_unless_they_are_safe_to_repeat() {
    let (holder, mut arrived) = holds_calls().await;
    let backend = Backend::echo().await;
    let mut node = Node::start("a");
    let held = local("held", holder.address);
    let uid = held.uid;
    node.publish(vec![echo(vec![held.clone()])]);
    let client = node.client().await;
    let mut calls = Vec::new();
    for method in ["Put", "Get"] {
        let client = client.clone();
        calls.push(tokio::spawn(async move {
            client
                .call(request(method).body(()).unwrap(), b"x")
                .await
                .unwrap()
        }));
        within(arrived.recv()).await.unwrap();
    }
    let (streaming, _send) = client
        .open(request("Streaming").body(()).unwrap(), false)
        .await;
    let mut streaming = within(streaming).await.unwrap().into_body();
    assert_eq!(within(streaming.data()).await.unwrap().unwrap(), "first");
    node.publish(vec![echo(vec![held, local("e2", backend.address)])]);
    node.table_in_use().await;
    holder.kill().await;
    let [put, get] = <[_; 2]>::try_from(calls).unwrap();
    let put = put.await.unwrap();
    assert_eq!((put.status(), put.reason()), ("14", "CONNECTION_LOST"));
    assert!(
        put.message().contains("instance held of echo.default"),
        "{}",
        put.message()
    );
    let get = get.await.unwrap();
    assert_eq!(
        (get.status(), get.body.as_slice()),
        ("0", &b"x"[..]),
        "it went to the instance that came meanwhile"
    );
    assert!(within(streaming.data()).await.is_none(), "not reset");
    let trailers = streaming.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["heddle-reason"], "CONNECTION_LOST");
    loop {
        match within(node.reports.recv()).await.unwrap() {
            Report::EndpointLost { uid: lost } => break assert_eq!(lost, uid),
            Report::EndpointRefused { .. } | Report::ServiceWanted { .. } => {}
        }
    }
    for _ in 0..20 {
        assert_eq!(
            client.put(b"x").await.status(),
            "0",
            "new calls go elsewhere at once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_call_moves_to_another_instance_within_the_budget() {
    // Breaks every connection at the first call on it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaker = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let _ = connection.accept().await;
            });
        }
    });
    let backend = Backend::echo().await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![
        local("broken", breaker),
        local("e", backend.address),
    ])]);
    let client = node.client().await;
    for _ in 0..12 {
        assert_eq!(client.get(b"x").await.status(), "0");
    }
    let metrics = node.workers.metrics();
    assert!(
        metrics.counter(Counter::RetriesIdempotent) > 0,
        "{metrics:?}"
    );

    // Only the broken one: the budget ends before the attempts of many calls would.
    node.publish(vec![echo(vec![local("broken", breaker)])]);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let client = client.clone();
        tasks.spawn(async move { client.get(b"x").await });
    }
    let mut reasons = std::collections::BTreeSet::new();
    while let Some(reply) = tasks.join_next().await {
        let reply = reply.unwrap();
        assert_eq!(reply.status(), "14");
        reasons.insert(reply.reason().to_owned());
    }
    assert!(reasons.contains("RETRY_BUDGET_EXHAUSTED"), "{reasons:?}");
}

/// Its only instance left the mesh while the call was on it, and then broke the connection: the caller was told that the
/// service had no instance.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_call_that_finds_no_other_instance_is_told_as_lost() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (has_call, mut called) = tokio::sync::mpsc::channel(1);
    let (break_it, broken) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let _call = connection.accept().await;
        has_call.send(()).await.unwrap();
        let _ = broken.await;
    });
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e", address)])]);
    let client = node.client().await;
    let call = tokio::spawn(async move { client.get(b"x").await });
    called.recv().await.unwrap();
    node.publish(vec![echo(Vec::new())]);
    node.table_in_use().await;
    break_it.send(()).unwrap();
    let reply = call.await.unwrap();
    assert_eq!(reply.reason(), "CONNECTION_LOST");
    let message = reply.message();
    for part in [
        "instance e of echo.default",
        "tried again",
        "has no instance",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_outgrew_the_replay_buffer_is_not_repeated() {
    let (send, mut arrived) = tokio::sync::mpsc::channel(4);
    let holder = Backend::start(move |request, _respond| {
        let send = send.clone();
        Box::pin(async move {
            let mut body = request.into_body();
            let mut total = 0;
            while let Some(Ok(data)) = body.data().await {
                total += data.len();
                let _ = body.flow_control().release_capacity(data.len());
                if total >= 200_000 {
                    send.send(()).await.unwrap();
                }
            }
            std::future::pending::<()>().await;
        })
    })
    .await;
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("held", holder.address)])]);
    let client = node.client().await;
    let call = tokio::spawn(async move { client.get(&vec![1; 200_000]).await });
    within(arrived.recv()).await.unwrap();
    node.publish(vec![echo(vec![local("e", backend.address)])]);
    holder.kill().await;
    let reply = call.await.unwrap();
    assert_eq!(reply.reason(), "CONNECTION_LOST");
    assert_eq!(backend.calls(), 0);
    assert!(node.workers.metrics().counter(Counter::BoundReplay) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let backend = Backend::echo().await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        // So long that the one that speaks does so in time, even if the machine stalls.
        handshake_timeout: std::time::Duration::from_secs(2),
        ..options("a")
    });
    node.publish(vec![echo(vec![
        local("silent", silent),
        local("e", backend.address),
    ])]);
    let client = node.client().await;
    for _ in 0..10 {
        assert_eq!(client.put(b"x").await.status(), "0");
    }
    assert!(backend.connections.load(Ordering::SeqCst) > 0);
    drop(listener);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_back_to_one_that_refused_it_rather_than_to_one_that_is_dead() {
    let turn = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let fussy = Backend::start(move |request, mut respond| {
        let first = turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        Box::pin(async move {
            match first {
                true => respond.send_reset(h2::Reason::REFUSED_STREAM),
                false => echo_answer(request, respond).await,
            }
        })
    })
    .await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        ..options("a")
    });
    node.publish(vec![echo(vec![
        local("dead", refusing().await),
        local("fussy", fussy.address),
    ])]);
    let client = node.client().await;
    // Until the dead one has been found and the next dial is far off.
    while node.workers.metrics().counter(Counter::ConnectFailures) < 6 {
        let reply = client.put(b"x").await;
        assert_eq!(reply.status(), "0", "{}", reply.message());
    }
    for _ in 0..20 {
        let reply = client.put(b"x").await;
        assert_eq!(reply.status(), "0", "{}", reply.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_breaks_its_servers_does_not_break_all_of_them() {
    let mut backends = Vec::new();
    for _ in 0..6 {
        let breaks = Backend::start(|_, mut respond| {
            Box::pin(async move { respond.send_reset(h2::Reason::INTERNAL_ERROR) })
        });
        backends.push(breaks.await);
    }
    let node = Node::start("a");
    let all = backends.iter().map(|backend| local("e", backend.address));
    node.publish(vec![echo(all.collect())]);
    let reply = node.client().await.get(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("13", "UPSTREAM_RESET"));
    let broken: usize = backends.iter().map(Backend::calls).sum();
    assert_eq!(broken, 3, "an idempotent call is sent three times at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_dials_do_not_use_up_the_attempts_of_an_idempotent_call() {
    for round in 0..8 {
        let turn = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let breaks_first = Backend::start(move |request, mut respond| {
            let first = turn.fetch_add(1, Ordering::SeqCst) == 0;
            Box::pin(async move {
                match first {
                    true => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                    false => echo_answer(request, respond).await,
                }
            })
        })
        .await;
        let node = Node::start("a");
        let mut endpoints = vec![local("e", breaks_first.address)];
        for _ in 0..3 {
            endpoints.push(local("dead", refusing().await));
        }
        node.publish(vec![echo(endpoints)]);
        // The instance that lives is chosen at any place among the dead ones.
        let reply = node.client().await.get(b"x").await;
        assert_eq!(reply.status(), "0", "{round}: {}", reply.message());
        assert_eq!(breaks_first.calls(), 2);
    }
}
