//! Draining a proxy: calls finish, callers get GOAWAY, and what takes too long ends with a reason.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::fixture::*;

async fn gated() -> (Backend, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let backend = Backend::start(move |request, respond| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            let _open = gate.acquire().await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    (backend, opened)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_finish_and_then_the_proxy_is_drained() {
    let (backend, gate) = gated().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e", backend.address)])]);
    let client = node.client().await;
    let idle = node.client().await;
    let slow = client.clone();
    let call = tokio::spawn(async move { slow.put(b"x").await });
    node.until("it is in flight", |m| m.active_calls == 1).await;
    node.workers.drain();
    let early = tokio::time::timeout(Duration::from_millis(200), node.workers.drained()).await;
    assert!(early.is_err(), "a call is left");
    gate.add_permits(1);
    assert_eq!(call.await.unwrap().status(), "0");
    within(node.workers.drained()).await;
    assert!(
        tokio::net::TcpStream::connect(node.outbound).await.is_err(),
        "nobody accepts any more"
    );
    // Idle connections stay open and do not keep it: only now the proxy would exit.
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_the_drain_timeout_ends_with_draining() {
    let (backend, _gate) = gated().await;
    let node = Node::with(heddle_proxy::worker::WorkerOptions {
        drain_timeout: Duration::from_millis(200),
        ..options("a")
    });
    node.publish(vec![echo(vec![local("e", backend.address)])]);
    let client = node.client().await;
    let call = tokio::spawn(async move { client.put(b"x").await });
    node.until("it is in flight", |m| m.active_calls == 1).await;
    node.workers.drain();
    within(node.workers.drained()).await;
    let reply = call.await.unwrap();
    assert_eq!((reply.status(), reply.reason()), ("14", "DRAINING"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_proxy_is_drained_at_once() {
    let node = Node::start("a");
    node.workers.drain();
    within(node.workers.drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_the_goodbye_of_its_instance_ends_with_draining() {
    // Says GOAWAY with a call on the connection, waits for it a while, and closes.
    let address = each_connection(|mut connection| async move {
        let Some(Ok((request, mut respond))) = connection.accept().await else {
            return;
        };
        let _stream = request.uri().path().ends_with("Stream").then(|| {
            let mut stream = respond.send_response(ok_headers(), false).unwrap();
            let part = bytes::Bytes::from_static(b"part");
            stream.send_data(part, false).unwrap();
            stream
        });
        connection.graceful_shutdown();
        let patience = Duration::from_millis(300);
        let _ = tokio::time::timeout(patience, connection.accept()).await;
    })
    .await;
    for (way, nodes, service) in paths(address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        for method in ["Stream", "Put"] {
            let call = client.call(request(method).body(()).unwrap(), b"x").await;
            let reply = call.unwrap();
            assert_eq!(
                (reply.status(), reply.reason()),
                ("14", "DRAINING"),
                "{way}, {method}: {}",
                reply.message()
            );
            assert_eq!(reply.trailers.is_none(), method == "Put", "{way}");
        }
    }
}
