//! Connection limits: who is accepted and who is closed when a listener is full. Unknown clients cannot lock out the
//! node's own services (issue 10, A4).

use std::net::SocketAddr;
use std::time::Duration;

use heddle_proxy::listener::ListenAddr;
use heddle_proxy::observe::Counter;
use heddle_proxy::worker::{Role, WorkerOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::*;

/// What an HTTP/2 client says before its first request.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn places(outbound: usize, inbound: usize) -> WorkerOptions {
    WorkerOptions {
        workers: 1,
        outbound_connections: outbound,
        inbound_connections: inbound,
        ..options("a")
    }
}

/// Connections that speak HTTP/2 and ask for nothing.
async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        all.push(stream);
    }
    all
}

/// Awaits that the proxy has closed a connection.
async fn closed(mut stream: TcpStream) {
    let mut received = Vec::new();
    let _ = within(stream.read_to_end(&mut received)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_inbound_take_no_place_of_the_nodes_own_callers() {
    let backend = Backend::echo().await;
    let node = Node::with(places(4, 4));
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    assert_eq!(client.get(b"before").await.status(), "0");
    let _strangers = silent(node.inbound, 40).await;
    let metrics = node
        .until("inbound is full", |m| {
            m.counter(Counter::AcceptedInbound) == 40
        })
        .await;
    assert_eq!(metrics.counter(Counter::BoundInboundConnections), 36);
    assert_eq!(metrics.counter(Counter::BoundOutboundConnections), 0);
    assert_eq!(metrics.downstream_connections, 5);
    // On the connection that was idle all the while, and on a new one.
    assert_eq!(client.get(b"after").await.status(), "0");
    assert_eq!(node.client().await.get(b"new").await.status(), "0");
}

/// Issue 10, N5.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_with_calls_at_inbound_do_not_lock_out_other_nodes() {
    let backend = Backend::echo().await;
    let (a, b, c) = (Node::start("a"), Node::with(places(4, 4)), Node::start("c"));
    b.publish(vec![on_b("e1", backend.address)]);
    for caller in [&a, &c] {
        caller.publish(vec![remote("e1", &b)]);
    }
    let client = a.client().await;
    assert_eq!(client.get(b"before").await.status(), "0");
    let mut strangers = Vec::new();
    for n in 1..=12 {
        let stranger = Client::connect(b.inbound).await;
        let call = request("Put").header("heddle-to", "default/echo/e1");
        let call = stranger.open(call.body(()).unwrap(), false).await;
        backend.until_calls(1 + n).await;
        strangers.push((stranger, call));
    }
    assert_eq!(client.get(b"after").await.status(), "0");
    assert_eq!(c.client().await.get(b"new").await.status(), "0");
    let reconnects = a.workers.metrics().counter(Counter::ClosedUpstream);
    assert_eq!(reconnects, 0, "the link that was idle stayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idlest_connection_goes_and_never_one_with_a_call() {
    let backend = Backend::echo().await;
    let node = Node::with(places(3, 3));
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let busy = node.client().await;
    let (answer, mut sending) = busy.open(request("Put").body(()).unwrap(), false).await;
    backend.until_calls(1).await;
    let idle = node.client().await;
    assert_eq!(idle.get(b"x").await.status(), "0");
    // It has asked for nothing, so it goes before those that have.
    let stranger = silent(node.outbound, 1).await.pop().unwrap();
    node.until("all places are taken", |m| m.downstream_connections == 3)
        .await;
    let newcomer = node.client().await;
    assert_eq!(newcomer.get(b"x").await.status(), "0");
    closed(stranger).await;
    assert_eq!(idle.get(b"x").await.status(), "0");
    // One newcomer after the other has the place of an idle one; the call in flight stays.
    for _ in 0..10 {
        assert_eq!(node.client().await.get(b"x").await.status(), "0");
    }
    sending.send_data("late".into(), true).unwrap();
    let reply = within(read_reply(answer)).await.unwrap();
    assert_eq!((reply.status(), &*reply.body), ("0", &b"late"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_is_refused_only_when_every_other_has_a_call() {
    let backend = Backend::echo().await;
    let node = Node::with(places(2, 2));
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let (first, second) = (node.client().await, node.client().await);
    let one = first.open(request("Put").body(()).unwrap(), false).await;
    let mut two = second.open(request("Put").body(()).unwrap(), false).await;
    backend.until_calls(2).await;
    closed(silent(node.outbound, 1).await.pop().unwrap()).await;
    two.1.send_data("end".into(), true).unwrap();
    assert_eq!(within(read_reply(two.0)).await.unwrap().status(), "0");
    assert_eq!(node.client().await.get(b"x").await.status(), "0");
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_nothing_in_time_is_left() {
    let backend = Backend::echo().await;
    let node = Node::with(WorkerOptions {
        first_request_timeout: Duration::from_millis(200),
        ..places(100, 100)
    });
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    assert_eq!(client.get(b"x").await.status(), "0");
    for address in [node.outbound, node.inbound] {
        closed(silent(address, 1).await.pop().unwrap()).await;
    }
    node.until("both are counted", |m| {
        m.counter(Counter::BoundFirstRequest) == 2
    })
    .await;
    // It has asked once: it may be idle for as long as it likes.
    assert_eq!(client.get(b"x").await.status(), "0");
    assert_eq!(backend.calls(), 2);
    assert_eq!(node.callers().await.len(), 1);
}

/// Issue 10, D3.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_unix_socket_is_private_and_goes_with_a_drain() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/out.sock");
    let node = Node::start("a");
    let unix = ListenAddr::Unix(path.clone());
    node.workers.listen(Role::Outbound, &unix).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    node.workers.drain();
    assert!(!path.exists());
}
