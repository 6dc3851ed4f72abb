//! How a proxy reports what it refuses: every limit that is hit is counted, and every failure names a node.

use heddle_proxy::observe::Counter;
use heddle_proxy::route::{ProtoService, Service};

use crate::fixture::*;
use crate::wire::{
    CALL, END_HEADERS, Frame, GOAWAY, HEADERS, PING, RST_STREAM, Wire, block, frame,
};

/// The next frame of this kind.
async fn next(wire: &mut Wire, kind: u8) -> Frame {
    loop {
        let frame = wire.frame().await.expect("the connection stands");
        if frame.kind == kind {
            return frame;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_the_bound_and_floods_are_counted() {
    let backend = Backend::start(|request, respond| {
        Box::pin(async move {
            let _open = (request, respond);
            std::future::pending::<()>().await;
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let mut caller = Wire::connect(node.outbound).await;
    // 1,000 at once, as announced, and ten more.
    let request = block(&CALL);
    for stream in 0..1_010 {
        let head = frame(HEADERS, END_HEADERS, 2 * stream + 1, &request);
        caller.send(&head).await;
    }
    for _ in 0..10 {
        let refused = next(&mut caller, RST_STREAM).await;
        assert_eq!(refused.code(), heddle_h2::ErrorCode::REFUSED_STREAM);
    }
    let metrics = node
        .until("they are counted", |m| {
            m.counter(Counter::BoundStreams) == 10
        })
        .await;
    let text = metrics.prometheus();
    assert!(
        text.contains("heddle_bounds_hit_total{bound=\"concurrent_streams\"} 10"),
        "{text}"
    );

    let mut flood = Wire::connect(node.outbound).await;
    // Acknowledged ones: the proxy has nothing to answer, so that all of this fits on its way.
    flood.send(&frame(PING, 1, 0, &[0; 8]).repeat(10_000)).await;
    let goaway = next(&mut flood, GOAWAY).await;
    assert_eq!(goaway.code(), heddle_h2::ErrorCode::ENHANCE_YOUR_CALM);
    node.until("it is counted", |m| m.counter(Counter::BoundFloods) == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_names_the_node_that_made_it() {
    let node = Node::start("a");
    let claims = |name: &str| {
        let mut service = Service::new(name, "default");
        service.protos = vec![ProtoService {
            name: "test.Two".to_owned(),
            ..Default::default()
        }];
        service.endpoints = echo(vec![local("e1", ([127, 0, 0, 1], 9).into())]).endpoints;
        service
    };
    let empty = Service::new("one", "default");
    node.publish(vec![empty, claims("two"), claims("three")]);
    let client = node.client().await;
    let long = "x".repeat(40_000);
    for (uri, reason, header) in [
        ("http://one/x.Y/Z", "NO_ENDPOINTS", ("a", "b")),
        ("http://nobody/x.Y/Z", "NO_ROUTE", ("a", "b")),
        ("http://localhost/test.Two/X", "AMBIGUOUS_ROUTE", ("a", "b")),
        (
            "http://one/x.Y/Z",
            "PROTOCOL_ERROR",
            ("grpc-timeout", "soon"),
        ),
        (
            "http://one/x.Y/Z",
            "DEADLINE_EXCEEDED",
            ("grpc-timeout", "0n"),
        ),
        ("http://one/x.Y/Z", "REQUEST_TOO_LARGE", ("a", &long)),
    ] {
        let call = http::Request::post(uri)
            .header("content-type", "application/grpc")
            .header(header.0, header.1);
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        assert_eq!(reply.reason(), reason, "{uri}");
        assert!(reply.message().contains("node a"), "{}", reply.message());
        if header.0 == "a" {
            let plain = http::Request::post(uri).header(header.0, header.1);
            let reply = client.call(plain.body(()).unwrap(), b"x").await.unwrap();
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(body.contains("node a"), "{body}");
        }
    }
}
