//! Failures made by the proxy: each with its reason, a message that names the cause, and the right form.

use std::time::Duration;

use heddle_proxy::balance::Health;
use heddle_proxy::route::{ProtoService, Service};
use heddle_proxy::worker::WorkerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::*;

fn named(name: &str, proto: &str) -> Service {
    let mut service = Service::new(name, "default");
    service.protos = vec![ProtoService {
        name: proto.to_owned(),
        ..Default::default()
    }];
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_reason_and_names_what_is_wrong() {
    let node = Node::start("a");
    let sick = heddle_proxy::balance::Endpoint {
        health: Health::Unhealthy,
        ..local("e1", ([127, 0, 0, 1], 9).into())
    };
    let mut sick_service = echo(vec![sick.clone()]);
    sick_service.protos.clear();
    let claims = |name: &str| {
        let mut service = named(name, "test.Two");
        service.endpoints = echo(vec![sick.clone()]).endpoints;
        service
    };
    node.publish(vec![
        sick_service,
        named("empty", "test.Empty"),
        claims("one"),
        claims("two"),
    ]);
    let client = node.client().await;
    for (uri, status, reason, words) in [
        (
            "http://127.0.0.1/test.None/X",
            "12",
            "NO_ROUTE",
            "test.None",
        ),
        (
            "http://ehco:80/test.Echo/Get",
            "12",
            "NO_ROUTE",
            "echo.default",
        ),
        (
            "http://localhost/test.Two/X",
            "9",
            "AMBIGUOUS_ROUTE",
            "one.default, two.default",
        ),
        (
            "http://localhost/test.Empty/X",
            "14",
            "NO_ENDPOINTS",
            "empty.default has no instance",
        ),
        (
            "http://echo.default/x.Y/Z",
            "14",
            "NO_HEALTHY_ENDPOINTS",
            "echo.default has 1 instance, and it is unhealthy or draining",
        ),
    ] {
        let call = http::Request::post(uri).header("content-type", "application/grpc+json");
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        assert_eq!((reply.status(), reply.reason()), (status, reason), "{uri}");
        assert!(
            reply.message().contains(words),
            "{uri}: {}",
            reply.message()
        );
        assert!(
            reply.trailers.is_none() && reply.body.is_empty(),
            "{uri}: trailers-only"
        );
        assert_eq!(reply.get("content-type"), "application/grpc+json");
        assert_eq!(reply.get("heddle-call").len(), 16);
        let details = reply.get("grpc-status-details-bin");
        assert_eq!(details.is_empty(), reason == "NO_ROUTE", "{uri}");
    }
    let metrics = node
        .until("five failures", |m| {
            m.calls
                .iter()
                .map(heddle_proxy::observe::snapshot::CallStats::total)
                .sum::<u64>()
                == 5
        })
        .await;
    assert!(
        metrics
            .prometheus()
            .contains("reason=\"AMBIGUOUS_ROUTE\"} 1"),
        "{}",
        metrics.prometheus()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_gets_http_statuses() {
    let node = Node::start("a");
    node.publish(vec![named("empty", "test.Empty")]);
    let client = node.client().await;
    for (uri, status, reason) in [
        ("http://nobody/", 404, "NO_ROUTE"),
        ("http://empty/page", 503, "NO_ENDPOINTS"),
    ] {
        let reply = client
            .call(http::Request::get(uri).body(()).unwrap(), b"")
            .await
            .unwrap();
        assert_eq!((reply.http_status, reply.reason()), (status, reason));
        assert!(String::from_utf8(reply.body).unwrap().starts_with(reason));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_headers_are_refused_on_that_call_alone() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let mut call = request("Get");
    for i in 0..300 {
        call = call.header(format!("x-{i}"), "v");
    }
    let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
    assert_eq!((reply.status(), reply.reason()), ("8", "REQUEST_TOO_LARGE"));
    let call = http::Request::get("http://echo/").header("x", "v".repeat(40_000));
    let reply = client.call(call.body(()).unwrap(), b"").await.unwrap();
    assert_eq!(
        (reply.http_status, reply.reason()),
        (431, "REQUEST_TOO_LARGE")
    );
    assert_eq!(client.get(b"x").await.status(), "0", "the connection lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_is_told_what_to_do() {
    let node = Node::start("a");
    let mut socket = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    within(socket.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 505 ") && answer.contains("HTTP/2"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_the_first_table_within_bounds() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    let client = node.client().await;
    let early = client.clone();
    let call = tokio::spawn(async move { early.get(b"x").await });
    node.until("it waits", |m| m.active_calls == 1).await;
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    assert_eq!(call.await.unwrap().status(), "0");

    let node = Node::with(WorkerOptions {
        ready_timeout: Duration::from_millis(50),
        ..options("b")
    });
    let reply = node.client().await.get(b"x").await;
    assert_eq!((reply.status(), reply.reason()), ("14", "NOT_READY"));
    assert!(reply.message().contains("node b"), "{}", reply.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_frame_ends_its_connection_and_no_other() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    assert_eq!(client.get(b"x").await.status(), "0");
    let mut wrong = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    wrong
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    // DATA on stream 0.
    wrong
        .write_all(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 9])
        .await
        .unwrap();
    let mut answer = Vec::new();
    within(wrong.read_to_end(&mut answer)).await.unwrap();
    assert!(
        answer.windows(5).any(|w| w[3] == 7),
        "a GOAWAY comes before the end: {answer:?}"
    );
    assert_eq!(client.get(b"x").await.status(), "0");
    node.until("it is counted", |m| {
        m.counter(heddle_proxy::observe::Counter::ProtocolErrorsDownstream) == 1
    })
    .await;
}

/// Issue 10, N2: what the proxy ends must not break the length that the instance promised.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_with_a_length_that_is_cut_short_has_its_own_failure() {
    let backend = Backend::start(|request, mut respond| {
        Box::pin(async move {
            let headers = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("content-length", "10")
                .body(())
                .unwrap();
            let mut stream = respond.send_response(headers, false).unwrap();
            stream.send_data("part".into(), false).unwrap();
            if request.uri().path().ends_with("Reset") {
                tokio::task::yield_now().await;
                return stream.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        })
    })
    .await;
    for (path, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        for (method, status, reason) in [
            ("Reset", "13", "UPSTREAM_RESET"),
            ("Hang", "4", "DEADLINE_EXCEEDED"),
        ] {
            let call = request(method)
                .header("grpc-timeout", "300m")
                .body(())
                .unwrap();
            let reply = within(client.call(call, b"")).await.unwrap();
            assert_eq!(
                (reply.status(), reply.reason()),
                (status, reason),
                "{path}, {method}: {}",
                reply.message()
            );
        }
    }
}
