//! `grpc-timeout`: strict, passed on, enforced.

use std::time::Duration;

use bytes::Bytes;

use crate::rig::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_passed_on_and_enforced_with_a_cancel_upstream() {
    let (send, mut seen) = tokio::sync::mpsc::channel(1);
    let (reset, mut resets) = tokio::sync::mpsc::channel(1);
    let backend = Backend::start(move |request, mut respond| {
        let (send, reset) = (send.clone(), reset.clone());
        Box::pin(async move {
            let timeout = request.headers()["grpc-timeout"]
                .to_str()
                .unwrap()
                .to_owned();
            send.send(timeout).await.unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx))
                .await
                .unwrap();
            reset.send(reason).await.unwrap();
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let call = request("Get")
        .header("grpc-timeout", "300m")
        .body(())
        .unwrap();
    let reply = client.call(call, b"x").await.unwrap();
    assert_eq!((reply.status(), reply.reason()), ("4", "DEADLINE_EXCEEDED"));
    assert!(reply.trailers.is_none(), "trailers-only");
    let passed: u32 = seen
        .recv()
        .await
        .unwrap()
        .strip_suffix('u')
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=300_000).contains(&passed), "{passed}");
    assert_eq!(within(resets.recv()).await.unwrap(), h2::Reason::CANCEL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_cancel_at_the_deadline_is_the_deadline_and_before_it_a_cancel() {
    let backend = Backend::start(|request, mut respond| {
        let left = request.headers()["grpc-timeout"].to_str().unwrap();
        let left: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
        let early = request.uri().path().ends_with("Cancel");
        Box::pin(async move {
            // As grpc-go does, with a clock that is a little ahead of the proxy's.
            if !early {
                tokio::time::sleep(Duration::from_micros(left.saturating_sub(3_000))).await;
            }
            respond.send_reset(h2::Reason::CANCEL);
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    let call = |method, timeout| {
        let call = request(method).header("grpc-timeout", timeout);
        call.body(()).unwrap()
    };
    let reply = client.call(call("Get", "50m"), b"x").await.unwrap();
    assert_eq!((reply.status(), reply.reason()), ("4", "DEADLINE_EXCEEDED"));
    let error = client.call(call("Cancel", "60S"), b"x").await.unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_after_the_headers_stands_on_trailers() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            stream
                .send_data(Bytes::from_static(b"part"), false)
                .unwrap();
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let call = request("Get")
        .header("grpc-timeout", "200m")
        .body(())
        .unwrap();
    let reply = node.client().await.call(call, b"x").await.unwrap();
    assert_eq!(reply.body, b"part");
    let trailers = reply.trailers.unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["heddle-reason"]),
        (&"4".parse().unwrap(), &"DEADLINE_EXCEEDED".parse().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_is_none_is_refused() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    for wrong in ["5", "5s", "123456789S", "-1S", ""] {
        let call = request("Get")
            .header("grpc-timeout", wrong)
            .body(())
            .unwrap();
        let reply = client.call(call, b"x").await.unwrap();
        assert_eq!(
            (reply.status(), reply.reason()),
            ("13", "PROTOCOL_ERROR"),
            "{wrong:?}"
        );
    }
    assert_eq!(backend.calls(), 0);
}
