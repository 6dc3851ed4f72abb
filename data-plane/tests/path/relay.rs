//! Calls of all kinds over one node.

use bytes::Bytes;
use heddle_proxy::listener::ListenAddr;
use heddle_proxy::worker::Role;

use crate::fixture::*;
use crate::wire::{self, Wire};

async fn one_node() -> (Node, Backend) {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    (node, backend)
}

#[tokio::test(flavor = "multi_thread")]
async fn unary_calls_are_relayed_and_counted() {
    let (node, backend) = one_node().await;
    let client = node.client().await;
    for round in 0..50 {
        let reply = client.get(format!("hello {round}").as_bytes()).await;
        assert_eq!(
            (reply.status(), reply.body.clone()),
            ("0", format!("hello {round}").into_bytes())
        );
        assert_eq!(
            reply.trailers.unwrap().len(),
            1,
            "nothing of the proxy's own comes along"
        );
    }
    assert_eq!(backend.calls(), 50);
    let metrics = node
        .until("fifty calls", |m| {
            m.calls
                .iter()
                .map(heddle_proxy::observe::snapshot::CallStats::total)
                .sum::<u64>()
                == 50
        })
        .await;
    let text = metrics.prometheus();
    let line = "heddle_calls_total{listener=\"outbound\",service=\"echo.default\",method=\"test.Echo/Get\",status=\"0\"} 50";
    assert!(text.contains(line), "{text}");
    node.until("no call is left", |m| {
        m.active_calls == 0 && m.buffered_bytes == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_few_connections() {
    let (node, backend) = one_node().await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    for n in 1..=16 {
        let client = node.client().await;
        // One after the other: where a connection goes depends on those that are known.
        node.until("it is accepted", |m| m.downstream_connections == n)
            .await;
        clients.push(client.clone());
        for _ in 0..20 {
            let client = client.clone();
            tasks.spawn(async move { client.put(b"x").await.status().to_owned() });
        }
    }
    while let Some(status) = tasks.join_next().await {
        assert_eq!(status.unwrap(), "0");
    }
    let connections = backend
        .connections
        .load(std::sync::atomic::Ordering::SeqCst);
    assert!(
        connections <= 2 * 4,
        "{connections} connections for two workers"
    );
    let downstream = loop {
        let listed = node.callers().await;
        if listed.len() == 16 {
            break listed;
        }
    };
    let mut per_worker = [0; 2];
    downstream.iter().for_each(|c| per_worker[c.worker] += 1);
    assert!(
        per_worker.iter().all(|n| *n >= 6),
        "sixteen sockets are spread: {per_worker:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_messages_goes_both_ways_at_once() {
    let (node, _backend) = one_node().await;
    let client = node.client().await;
    let (response, mut send) = client.open(request("Chat").body(()).unwrap(), false).await;
    let mut body = within(response).await.unwrap().into_body();
    for round in 0..1000u32 {
        let message = Bytes::from(format!("message {round}"));
        push(&mut send, message.clone()).await.unwrap();
        let echoed = within(body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(echoed.len()).unwrap();
        assert_eq!(echoed, message, "before the next is sent");
    }
    send.send_data(Bytes::new(), true).unwrap();
    assert!(within(body.data()).await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_16_mib_passes() {
    let (node, _backend) = one_node().await;
    let client = node.client().await;
    let big: Vec<u8> = (0..16 << 20).map(|i: u32| (i % 251) as u8).collect();
    let reply = client.put(&big).await;
    assert_eq!(reply.status(), "0");
    assert!(reply.body == big, "the bytes are those that were sent");
    node.until("nothing is held", |m| {
        m.buffered_bytes == 0 && m.active_calls == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_keeps_order_duplicates_and_binary_values_and_loses_what_is_heddles() {
    let (send, mut seen) = tokio::sync::mpsc::channel(1);
    let backend = Backend::start(move |request, mut respond| {
        let send = send.clone();
        Box::pin(async move {
            let list = |map: &http::HeaderMap| -> Vec<(String, String)> {
                map.iter()
                    .map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()))
                    .collect()
            };
            send.send(list(request.headers())).await.unwrap();
            let head = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("x-dup", "1")
                .header("x-dup", "2")
                .header("x-bin", "AAE,Ag==")
                .header("heddle-reason", "NO_ROUTE");
            let mut stream = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            let mut trailers = status(0);
            trailers.insert("heddle-unprocessed", "1".parse().unwrap());
            trailers.append("t-dup", "a".parse().unwrap());
            trailers.append("t-dup", "b".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let call = request("Get")
        .header("a-dup", "1")
        .header("heddle-from", "shop/admin")
        .header("a-dup", "2")
        .header("key-bin", "AAEC")
        .header("a-dup", "1")
        .body(())
        .unwrap();
    let reply = node.client().await.call(call, b"x").await.unwrap();
    let seen = seen.recv().await.unwrap();
    let of = |name: &str| -> Vec<&str> {
        seen.iter()
            .filter(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
            .collect()
    };
    assert_eq!(of("a-dup"), ["1", "2", "1"]);
    assert_eq!((of("key-bin"), of("te")), (vec!["AAEC"], vec!["trailers"]));
    assert!(
        !seen.iter().any(|(name, _)| name.starts_with("heddle-")),
        "{seen:?}"
    );
    let values: Vec<_> = reply.headers.get_all("x-dup").iter().collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(reply.get("x-bin"), "AAE,Ag==");
    let trailers = reply.trailers.as_ref().unwrap();
    assert_eq!(
        trailers.get_all("t-dup").iter().collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(
        (reply.reason(), reply.get("heddle-unprocessed")),
        ("", ""),
        "a service cannot claim to be a proxy"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_only_stays_trailers_only() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let mut head = ok_headers();
            head.headers_mut().insert("grpc-status", 5.into());
            head.headers_mut()
                .insert("grpc-message", "not found".parse().unwrap());
            respond.send_response(head, true).unwrap();
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let (response, mut send) = client.open(request("Get").body(()).unwrap(), false).await;
    send.send_data(Bytes::from_static(b"x"), true).unwrap();
    let response = within(response).await.unwrap();
    assert!(
        response.body().is_end_stream(),
        "END_STREAM stands on the headers"
    );
    assert_eq!(
        (
            &response.headers()["grpc-status"],
            &response.headers()["grpc-message"]
        ),
        (&"5".parse().unwrap(), &"not found".parse().unwrap())
    );
    assert_eq!(response.headers().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_answer_before_the_request_has_ended() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            stream
                .send_data(Bytes::from_static(b"early"), false)
                .unwrap();
            stream.send_trailers(status(9)).unwrap();
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let (response, _send) = client.open(request("Chat").body(()).unwrap(), false).await;
    let reply = within(read_reply(response)).await.unwrap();
    assert_eq!(
        (reply.status(), reply.body.as_slice()),
        ("9", &b"early"[..])
    );
    assert_eq!(client.get(b"").await.status(), "9", "the connection lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_server_at_once() {
    let (send, mut seen) = tokio::sync::mpsc::channel(1);
    let backend = Backend::start(move |_, mut respond| {
        let send = send.clone();
        Box::pin(async move {
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            send.send(reset.unwrap()).await.unwrap();
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let (response, mut send) = client.open(request("Get").body(()).unwrap(), false).await;
    let _response = within(response).await.unwrap();
    send.send_reset(h2::Reason::CANCEL);
    assert_eq!(within(seen.recv()).await.unwrap(), h2::Reason::CANCEL);
    let metrics = node
        .until("one cancelled call", |m| {
            m.calls.iter().any(|c| c.status[1] == 1)
        })
        .await;
    assert_eq!(metrics.calls[0].total(), 1);
    node.until("none is left", |m| m.active_calls == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_cancel_is_cancelled_and_not_tried_again() {
    let backend = Backend::start(|request, mut respond| {
        Box::pin(async move {
            if request.uri().path().ends_with("Late") {
                let mut stream = respond.send_response(ok_headers(), false).unwrap();
                stream.send_data(Bytes::from_static(b"x"), false).unwrap();
                tokio::task::yield_now().await;
                stream.send_reset(h2::Reason::CANCEL);
            } else {
                respond.send_reset(h2::Reason::CANCEL);
            }
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    for method in ["Get", "Late"] {
        let reply = client
            .call(request(method).body(()).unwrap(), b"x")
            .await
            .unwrap();
        assert_eq!(
            (reply.status(), reply.reason()),
            ("1", "UPSTREAM_RESET"),
            "{method}"
        );
    }
    assert_eq!(backend.calls(), 2, "though one is idempotent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_listens_too() {
    let (node, _backend) = one_node().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.sock");
    let bound = node
        .workers
        .listen(Role::Outbound, &ListenAddr::Unix(path.clone()))
        .unwrap();
    assert_eq!(bound, ListenAddr::Unix(path.clone()));
    let client = Client::over(tokio::net::UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(client.get(b"x").await.status(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_go_to_the_proxys_own_services() {
    let mut node = Node::start("a");
    node.publish(vec![]);
    let client = node.client().await;
    let call = http::Request::post("http://127.0.0.1/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc");
    let call =
        tokio::spawn(async move { client.call(call.body(()).unwrap(), b"ping").await.unwrap() });
    let socket = within(node.internal.recv()).await.unwrap();
    let socket = tokio::net::UnixStream::from_std(socket).unwrap();
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let (request, respond) = within(connection.accept()).await.unwrap().unwrap();
    tokio::spawn(async move { while connection.accept().await.is_some() {} });
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    echo_answer(request, respond).await;
    assert_eq!(call.await.unwrap().body, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_a_unix_socket_as_authority_means_this_proxy() {
    let (send, mut seen) = tokio::sync::mpsc::channel(1);
    let backend = Backend::start(move |request, respond| {
        let (send, authority) = (send.clone(), request.uri().authority().cloned());
        Box::pin(async move {
            send.send(authority).await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let mut caller = Wire::connect(node.outbound).await;
    // What grpcio sends to unix:/run/heddle/out.sock.
    let fields = wire::CALL.map(|(name, value)| match name {
        ":authority" => (name, "run%2Fheddle%2Fout.sock"),
        _ => (name, value),
    });
    let ends = wire::END_HEADERS | wire::END_STREAM;
    let head = wire::frame(wire::HEADERS, ends, 1, &wire::block(&fields));
    caller.send(&head).await;
    let authority = within(seen.recv()).await.unwrap().unwrap();
    assert_eq!(authority.as_str(), "localhost");
    let answer = loop {
        let frame = caller.frame().await.unwrap();
        if frame.kind == wire::HEADERS {
            break frame;
        }
    };
    assert_eq!(caller.decode(&answer).status(), Some(200));
}
