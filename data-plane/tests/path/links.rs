//! Two nodes: a call goes through both proxies, and each sends only the headers that it may.

use heddle_proxy::balance::{Endpoint, Health, Target};

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_call_crosses_both_proxies_and_the_service_sees_nothing_of_them() {
    let (send, mut seen) = tokio::sync::mpsc::channel(64);
    let backend = Backend::start(move |request, respond| {
        let send = send.clone();
        Box::pin(async move {
            let heads: Vec<String> = request.headers().keys().map(ToString::to_string).collect();
            let authority = request.uri().authority().unwrap().to_string();
            send.send((heads, authority)).await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    let (a, b) = (Node::start("a"), Node::start("b"));
    a.publish(vec![remote("e1", &b)]);
    b.publish(vec![on_b("e1", backend.address)]);
    let client = a.client().await;
    for _ in 0..20 {
        let reply = client.put(b"over").await;
        assert_eq!((reply.status(), reply.body.as_slice()), ("0", &b"over"[..]));
        assert!(
            !reply
                .headers
                .keys()
                .any(|name| name.as_str().starts_with("heddle-"))
        );
        let (heads, authority) = seen.recv().await.unwrap();
        assert!(
            !heads.iter().any(|name| name.starts_with("heddle-")),
            "{heads:?}"
        );
        assert_eq!(authority, "127.0.0.1", "as the caller sent it");
    }
    let to = |node: &Node| -> Vec<String> {
        node.workers
            .connections()
            .into_iter()
            .filter(|c| c.kind == "upstream")
            .map(|c| c.peer)
            .collect()
    };
    assert!(
        to(&a).iter().all(|peer| *peer == b.inbound.to_string()),
        "{:?}",
        to(&a)
    );
    assert!(
        to(&b)
            .iter()
            .all(|peer| *peer == backend.address.to_string()),
        "{:?}",
        to(&b)
    );
    let metrics = b
        .until("inbound counts them", |m| {
            m.calls.iter().any(|c| c.total() == 20)
        })
        .await;
    assert_eq!(metrics.calls[0].listener, "inbound");
    let big = vec![9; 4 << 20];
    assert!(client.put(&big).await.body == big, "big bodies cross too");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_gone_is_replaced_by_another_local_one() {
    let backend = Backend::echo().await;
    let (a, b) = (Node::start("a"), Node::start("b"));
    a.publish(vec![remote("old", &b)]);
    b.publish(vec![on_b("new", backend.address)]);
    assert_eq!(a.client().await.put(b"x").await.status(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_service_sends_the_call_back_unprocessed() {
    let backend = Backend::echo().await;
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    b.publish(vec![]);
    c.publish(vec![echo(vec![endpoint(
        "e",
        "c",
        Target::Local(backend.address),
    )])]);
    let both = echo(vec![
        endpoint("e", "b", Target::Node(b.inbound)),
        endpoint("e", "c", Target::Node(c.inbound)),
    ]);
    a.publish(vec![both]);
    let client = a.client().await;
    for _ in 0..30 {
        assert_eq!(
            client.put(b"x").await.status(),
            "0",
            "the other node has one"
        );
    }
    a.publish(vec![remote("e", &b)]);
    a.table_in_use().await;
    let reply = client.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "NO_ENDPOINTS"));
    assert!(
        reply
            .message()
            .contains("node b has no instance of echo.default"),
        "{}",
        reply.message()
    );
    assert_eq!(
        reply.get("heddle-unprocessed"),
        "",
        "that is between proxies"
    );
    assert_eq!(
        reply.get("heddle-call").len(),
        16,
        "the same id on both nodes"
    );

    // It says of its own instance what the caller's node would say of one that it knew to be unhealthy.
    let sick = Endpoint {
        health: Health::Unhealthy,
        ..endpoint("e", "b", Target::Local(backend.address))
    };
    b.publish(vec![echo(vec![sick])]);
    b.table_in_use().await;
    let reply = client.put(b"x").await;
    let outcome = (reply.status(), reply.reason());
    assert_eq!(
        outcome,
        ("14", "NO_HEALTHY_ENDPOINTS"),
        "{}",
        reply.message()
    );
    let text = "echo.default has 1 instance on node b";
    assert!(reply.message().contains(text), "{}", reply.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_belongs_to_another_node_is_not_used() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    b.publish(vec![]);
    a.publish(vec![echo(vec![endpoint(
        "e",
        "z",
        Target::Node(b.inbound),
    )])]);
    let reply = a.client().await.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "CONNECT_FAILED"));
    assert!(
        reply.message().contains("it is node b, not z"),
        "{}",
        reply.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inbound_takes_calls_of_proxies_only() {
    let backend = Backend::echo().await;
    let b = Node::start("b");
    b.publish(vec![on_b("e", backend.address)]);
    let client = Client::connect(b.inbound).await;
    let reply = client.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("12", "NO_ROUTE"));
    assert!(reply.message().contains("heddle-to"), "{}", reply.message());
    assert_eq!(backend.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_behind_a_link_is_told_as_it_is() {
    let backend = Backend::start(|request, mut respond| {
        Box::pin(async move {
            match request.uri().path() {
                "/test.Echo/Get" => respond.send_reset(h2::Reason::CANCEL),
                _ => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            }
        })
    })
    .await;
    let (a, b) = (Node::start("a"), Node::start("b"));
    a.publish(vec![remote("e", &b)]);
    b.publish(vec![on_b("e", backend.address)]);
    let client = a.client().await;
    let reply = client.get(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("1", "UPSTREAM_RESET"));
    let reply = client.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("13", "UPSTREAM_RESET"));
    assert!(
        reply.message().contains("INTERNAL_ERROR"),
        "{}",
        reply.message()
    );
    assert_eq!(
        backend.calls(),
        2,
        "not tried again: cancelled, and not idempotent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_the_other_node_could_not_carry_out_is_one() {
    let address = refusing().await;
    let (a, b) = (Node::start("a"), Node::start("b"));
    a.publish(vec![remote("e1", &b)]);
    b.publish(vec![on_b("e1", address)]);
    let reply = a.client().await.put(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "CONNECT_FAILED"));
    let attempts: u64 = a.workers.metrics().calls.iter().map(|c| c.attempts).sum();
    let calls = b.workers.metrics().calls;
    let seen: u64 = calls.iter().flat_map(|c| c.status).sum();
    assert_eq!(attempts, seen, "counted as often as it was tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_goes_elsewhere_too_when_a_node_cannot_take_it() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let response = http::Response::new(());
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data("page".into(), true).unwrap();
        })
    })
    .await;
    let (a, b, c) = (Node::start("a"), Node::start("b"), Node::start("c"));
    a.publish(vec![echo(vec![
        endpoint("e1", "b", Target::Node(b.inbound)),
        endpoint("e2", "c", Target::Node(c.inbound)),
    ])]);
    b.publish(vec![echo(Vec::new())]);
    c.publish(vec![echo(vec![endpoint(
        "e2",
        "c",
        Target::Local(backend.address),
    )])]);
    let client = a.client().await;
    for _ in 0..30 {
        let page = http::Request::get("http://echo.default/test.Echo/Page");
        let reply = client.call(page.body(()).unwrap(), b"").await.unwrap();
        assert_eq!((reply.http_status, &*reply.body), (200, &b"page"[..]));
    }
    let refused: u64 = b
        .workers
        .metrics()
        .calls
        .iter()
        .flat_map(|c| c.status)
        .sum();
    assert!(refused > 0, "node b was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_does_not_end_is_given_up() {
    let b = Node::with(heddle_proxy::worker::WorkerOptions {
        // So long that the client's preface comes in time, even if the machine stalls.
        handshake_timeout: std::time::Duration::from_secs(2),
        ..options("b")
    });
    let client = Client::connect(b.inbound).await;
    let hello = http::Request::post("http://b.node.mesh/heddle.link.v1.Link/Hello")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, _send) = client.open(hello, false).await;
    let error = within(answer).await.unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_silent_with_calls_under_way_is_given_up() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        })
    })
    .await;
    let b = Node::with(heddle_proxy::worker::WorkerOptions {
        keepalive_interval: std::time::Duration::from_millis(100),
        // So long that the peer answers while it still reads, even if the machine stalls.
        keepalive_timeout: std::time::Duration::from_secs(2),
        ..options("b")
    });
    b.publish(vec![on_b("e1", backend.address)]);
    let socket = tokio::net::TcpStream::connect(b.inbound).await.unwrap();
    let (mut send, mut connection) = h2::client::handshake(socket).await.unwrap();
    let call = request("Put")
        .header("heddle-to", "default/echo/e1")
        .body(())
        .unwrap();
    let _call = send.send_request(call, true).unwrap();
    tokio::select! {
        _ = &mut connection => panic!("it was closed"),
        () = backend.until_calls(1) => {}
    }
    // From here on the connection stays open, and nobody reads it.
    b.until("it is given up", |m| {
        m.counter(heddle_proxy::observe::Counter::KeepAliveLost) == 1 && m.active_calls == 0
    })
    .await;
    drop(connection);
}
