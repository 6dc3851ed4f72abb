//! Shares of buffered bytes (issue 10, A1 (a), (b), (e) and A2). A caller or service that turns few bytes into many, or
//! does not read, is held back or refused; the connections that it shares stay open, and calls of others succeed.
//! Attackers write HTTP/2 by hand, through real workers. Numbers of streams and connections are not tested here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heddle_proxy::observe::Counter;
use heddle_proxy::route::{ProtoService, Service};
use heddle_proxy::worker::WorkerOptions;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::fixture::*;
use crate::wire::*;

/// Calls of the attacker, and of the one who suffers.
const ATTACKS: usize = 980;
const HONEST: usize = 20;
/// The value of the field that is sent once and named by one byte afterwards.
const LARGE: usize = 3900;

fn one_worker(name: &str) -> WorkerOptions {
    WorkerOptions {
        workers: 1,
        ..options(name)
    }
}

/// `bulk.default`, which implements `test.Bulk`: the service that the attacker uses or has broken into.
fn bulk(endpoints: Vec<heddle_proxy::balance::Endpoint>) -> Service {
    let mut service = Service::new("bulk", "default");
    service.protos = vec![ProtoService {
        name: "test.Bulk".to_owned(),
        idempotent_methods: Vec::new(),
        ..ProtoService::default()
    }];
    service.endpoints = Arc::new(heddle_proxy::balance::EndpointSet {
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    });
    service
}

/// A field that is put into the table (RFC 7541 §6.2.1): it is index 62 from then on, one byte.
fn large_field() -> Vec<u8> {
    let mut bytes = vec![0x40, 1, b'x', 0x7f];
    let mut rest = LARGE - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes.extend(vec![b'~'; LARGE]);
    bytes
}
const LARGE_AGAIN: [u8; 7] = [0xbe; 7];

const BULK: [Pair; 6] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Bulk/Do"),
    (":authority", "bulk.default"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];

/// So many requests of seven large fields each, on streams from 1 on; the first fills the table.
fn bulk_requests(count: usize) -> Vec<u8> {
    let mut bytes = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &[block(&BULK), large_field()].concat(),
    );
    let again = [&block(&BULK)[..], &LARGE_AGAIN].concat();
    for n in 1..u32::try_from(count).unwrap() {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &again));
    }
    bytes
}

/// Holds every call until it is let go, then echoes.
async fn gated_echo(gate: &Arc<Semaphore>) -> Backend {
    let gate = Arc::clone(gate);
    Backend::start(move |request, respond| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            let _open = gate.acquire().await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await
}

/// Two nodes with a link: `echo` and `bulk` run on `b`, callers are on `a`.
async fn linked(echo_at: SocketAddr, bulk_at: SocketAddr) -> (Node, Node) {
    let (a, b) = (Node::with(one_worker("a")), Node::with(one_worker("b")));
    let target = || heddle_proxy::balance::Target::Node(b.inbound);
    a.publish(vec![
        echo(vec![endpoint("e1", "b", target())]),
        bulk(vec![endpoint("k1", "b", target())]),
    ]);
    b.publish(vec![
        on_b("e1", echo_at),
        bulk(vec![endpoint(
            "k1",
            "b",
            heddle_proxy::balance::Target::Local(bulk_at),
        )]),
    ]);
    (a, b)
}

/// Calls of an honest caller that are under way while the attack goes on.
fn honest(client: &Client) -> tokio::task::JoinSet<Reply> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..HONEST {
        let client = client.clone();
        calls.spawn(async move { client.put(b"honest").await });
    }
    calls
}

async fn all_well(mut calls: tokio::task::JoinSet<Reply>) {
    while let Some(reply) = within(calls.join_next()).await {
        let reply = reply.unwrap();
        assert_eq!(
            (reply.status(), reply.body.as_slice()),
            ("0", &b"honest"[..]),
            "{} {}",
            reply.reason(),
            reply.message()
        );
    }
}

/// Nothing was dropped that is shared.
fn assert_kept(nodes: [&Node; 2]) {
    for node in nodes {
        let metrics = node.workers.metrics();
        assert_eq!(
            metrics.counter(Counter::BoundOutput),
            0,
            "node {}",
            node.name
        );
        assert_eq!(
            metrics.counter(Counter::ClosedUpstream),
            0,
            "node {}",
            node.name
        );
    }
}

/// A1 (a): 145 KB of a caller unfold to 26 MB on the link, of which the link was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_unfold_cost_nobody_else_the_link() {
    let gate = Arc::new(Semaphore::new(0));
    let (echoes, bulks) = (gated_echo(&gate).await, gated_echo(&gate).await);
    let (a, b) = linked(echoes.address, bulks.address).await;
    let calls = honest(&a.client().await);
    echoes.until_calls(HONEST).await;
    let mut attacker = Wire::connect(a.outbound).await;
    attacker.send(&bulk_requests(ATTACKS)).await;
    bulks.until_calls(ATTACKS).await;
    gate.add_permits(ATTACKS + HONEST);
    all_well(calls).await;
    all_well(honest(&a.client().await)).await;
    assert_kept([&a, &b]);
    drop(attacker);
}

/// Takes a proxy's connection and so many requests on it; says their streams.
async fn take_requests(listener: &TcpListener, count: usize) -> (Wire, Vec<u32>) {
    let mut wire = Wire::accept(listener).await;
    let mut streams = Vec::new();
    while streams.len() < count {
        let frame = wire.frame().await.expect("the connection lives");
        if frame.kind == HEADERS {
            streams.push(frame.stream);
        }
    }
    (wire, streams)
}

/// A1 (b): the same by the answers of a service.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_unfold_cost_no_other_service_the_link() {
    let gate = Arc::new(Semaphore::new(0));
    let echoes = gated_echo(&gate).await;
    let listener = TcpListener::bind((own_host(), 0)).await.unwrap();
    let (a, b) = linked(echoes.address, listener.local_addr().unwrap()).await;
    let calls = honest(&a.client().await);
    echoes.until_calls(HONEST).await;
    let client = a.client().await;
    let mut victims = Vec::new();
    for _ in 0..ATTACKS {
        let call = http::Request::post("http://bulk.default/test.Bulk/Do")
            .header("content-type", "application/grpc");
        victims.push(client.open(call.body(()).unwrap(), true).await);
    }
    let (mut service, streams) = within(take_requests(&listener, ATTACKS)).await;
    let mut answers = Vec::new();
    let status = block(&[(":status", "200"), ("content-type", "application/grpc")]);
    for (n, stream) in streams.into_iter().enumerate() {
        let large = if n == 0 {
            large_field()
        } else {
            LARGE_AGAIN.to_vec()
        };
        let list = [&status[..], &large].concat();
        answers.extend(frame(HEADERS, END_HEADERS, stream, &list));
        let trailers = [&block(&[("grpc-status", "0")])[..], &LARGE_AGAIN].concat();
        answers.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers));
    }
    service.send(&answers).await;
    gate.add_permits(HONEST * 2);
    all_well(calls).await;
    all_well(honest(&a.client().await)).await;
    // Nor is anything lost of what the service sent.
    for (response, _send) in victims {
        let reply = within(read_reply(response)).await.unwrap();
        assert_eq!(reply.status(), "0");
    }
    assert_kept([&a, &b]);
}

/// HEADERS and CONTINUATION frames of one block.
fn split(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    const CONTINUATION: u8 = 9;
    let pieces: Vec<_> = block.chunks(16_000).collect();
    let mut bytes = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        let end = if n + 1 == pieces.len() {
            END_HEADERS
        } else {
            0
        };
        bytes.extend(match n {
            0 => frame(HEADERS, flags | end, stream, piece),
            _ => frame(CONTINUATION, end, stream, piece),
        });
    }
    bytes
}

const SOME: &str = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

/// 200 KB of fields, none of which is remembered.
fn far_too_large() -> Vec<u8> {
    (0..2000).flat_map(|_| block(&[("x-some", SOME)])).collect()
}

/// A1 (e): an answer with a list far over the limit closed the connection to the instance.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_far_over_the_limit_fails_its_own_call_only() {
    let listener = TcpListener::bind((own_host(), 0)).await.unwrap();
    let node = Node::with(one_worker("a"));
    node.publish(vec![echo(vec![local(
        "e1",
        listener.local_addr().unwrap(),
    )])]);
    let client = node.client().await;
    let mut calls = Vec::new();
    for _ in 0..24 {
        calls.push(client.open(request("Put").body(()).unwrap(), true).await.0);
    }
    let (mut service, streams) = within(take_requests(&listener, 24)).await;
    let ok = block(&[(":status", "200"), ("content-type", "application/grpc")]);
    let end = block(&[("grpc-status", "0")]);
    for (n, stream) in streams.into_iter().enumerate() {
        let large = n % 2 == 0;
        let list = if large && n < 12 {
            [ok.clone(), far_too_large()].concat()
        } else {
            ok.clone()
        };
        let trailers = if large {
            [end.clone(), far_too_large()].concat()
        } else {
            end.clone()
        };
        let mut bytes = split(stream, 0, &list);
        bytes.extend(split(stream, END_STREAM, &trailers));
        service.send(&bytes).await;
    }
    for (n, response) in calls.into_iter().enumerate() {
        let reply = within(read_reply(response)).await.unwrap();
        let expect = match (n % 2, n) {
            (0, 0..12) => ("13", "RESPONSE_INVALID"),
            // The status of trailers that are too large is delivered all the same.
            _ => ("0", ""),
        };
        assert_eq!(
            (reply.status(), reply.reason()),
            expect,
            "call {n}: {}",
            reply.message()
        );
    }
    let metrics = node.workers.metrics();
    assert_eq!(metrics.counter(Counter::ProtocolErrorsUpstream), 0);
    assert!(metrics.counter(Counter::BoundHeaders) >= 12);
}

/// A1 (e), the other way: a caller's own list costs its own call only.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_far_over_the_limit_costs_its_caller_no_other_call() {
    let gate = Arc::new(Semaphore::new(0));
    let backend = gated_echo(&gate).await;
    let node = Node::with(one_worker("a"));
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let mut caller = Wire::connect(node.outbound).await;
    caller
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&CALL)))
        .await;
    backend.until_calls(1).await;
    let large = [block(&CALL), far_too_large()].concat();
    caller.send(&split(3, END_STREAM, &large)).await;
    gate.add_permits(1);
    let (mut ended, mut reasons) = (Vec::new(), Vec::new());
    while ended.len() < 2 {
        let frame = caller.frame().await.expect("the connection lives");
        if frame.kind != HEADERS {
            continue;
        }
        let fields = caller.decode(&frame);
        if let Some(reason) = fields.get(b"heddle-reason") {
            reasons.push((frame.stream, reason.to_vec()));
        }
        if frame.flags & END_STREAM != 0 {
            ended.push(frame.stream);
        }
    }
    assert_eq!(reasons, [(3, b"REQUEST_TOO_LARGE".to_vec())]);
}

/// A service that answers without end.
async fn endless() -> Backend {
    Backend::start(|_, mut respond| {
        Box::pin(async move {
            let Ok(mut stream) = respond.send_response(ok_headers(), false) else {
                return;
            };
            while push(&mut stream, Bytes::from(vec![7; 16_384]))
                .await
                .is_some()
            {}
        })
    })
    .await
}

/// A caller's connection whose windows are wide open, with calls under way of which it reads nothing.
async fn unread(node: &Node, calls: u32) -> Wire {
    let mut wire = Wire::connect_narrow(node.outbound).await;
    const WINDOW: u32 = (1 << 31) - 1;
    let mut bytes = frame(
        SETTINGS,
        0,
        0,
        &[&[0, 4][..], &WINDOW.to_be_bytes()].concat(),
    );
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes()));
    // It reads nothing, the other side's settings neither.
    bytes.extend(frame(SETTINGS, ACK, 0, &[]));
    for n in 0..calls {
        bytes.extend(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * n + 1,
            &block(&BULK),
        ));
    }
    wire.send(&bytes).await;
    wire
}

/// A2: what callers leave unread took all of the bound, and the next call was refused, whoever made it.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_do_not_read_are_refused_and_others_are_not() {
    const BOUND: usize = 6 << 20;
    let (echoes, floods) = (Backend::echo().await, endless().await);
    let node = Node::with(WorkerOptions {
        buffered_bytes: BOUND,
        ..one_worker("a")
    });
    node.publish(vec![
        echo(vec![local("e1", echoes.address)]),
        bulk(vec![local("k1", floods.address)]),
    ]);
    let client = node.client().await;
    let mut attackers = Vec::new();
    for _ in 0..12 {
        attackers.push(unread(&node, 40).await);
        // A body that is kept for another attempt, too.
        let reply = client.get(&[1; 20_000]).await;
        assert_eq!(
            reply.status(),
            "0",
            "{} {}",
            reply.reason(),
            reply.message()
        );
    }
    // Of many such callers it is the service that they all use which comes to its share first.
    node.until("who does not read is held to a share", |m| {
        m.counter(Counter::BoundCallerShare) + m.counter(Counter::BoundServiceShare) > 0
    })
    .await;
    all_well(honest(&client)).await;
    let metrics = node.workers.metrics();
    assert!(
        metrics.buffered_bytes < BOUND + (1 << 20),
        "{}",
        metrics.buffered_bytes
    );
    assert_eq!(
        metrics.counter(Counter::BoundMemory),
        0,
        "the bound itself is never reached"
    );
    assert_eq!(
        metrics.counter(Counter::BoundReplay),
        0,
        "honest callers may still be tried again"
    );
}

/// A2: the same by many connections, each of which leaves little unread, and nothing that waits in a stream.
#[tokio::test(flavor = "multi_thread")]
async fn many_callers_that_do_not_read_leave_room_for_others() {
    let (echoes, floods) = (Backend::echo().await, endless().await);
    let node = Node::with(WorkerOptions {
        // Its reserve is clearly more than what comes in one turn.
        buffered_bytes: 16 << 20,
        stall_timeout: LONG + Duration::from_secs(6),
        ..one_worker("a")
    });
    node.publish(vec![
        echo(vec![local("e1", echoes.address)]),
        bulk(vec![local("k1", floods.address)]),
    ]);
    let client = node.client().await;
    let mut attackers = Vec::new();
    for _ in 0..300 {
        attackers.push(unread(&node, 1).await);
    }
    let refused = |m: &heddle_proxy::observe::MetricsSnapshot| {
        m.counter(Counter::BoundCallerShare) + m.counter(Counter::BoundServiceShare)
    };
    within(async {
        while refused(&node.workers.metrics()) < 100 {
            all_well(honest(&client)).await;
        }
    })
    .await;
    all_well(honest(&client)).await;
    let metrics = node.workers.metrics();
    assert_eq!(
        metrics.counter(Counter::BoundMemory),
        0,
        "the reserve is not used up"
    );
    // The fuller the buffers, the sooner they must go: long before that timeout.
    node.until("the callers that do not read are disconnected", |m| {
        m.counter(Counter::BoundStall) > 0
    })
    .await;
}

/// A2, and 17 of the hardening list: a receiver that takes a byte now and then was never cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_now_and_then_is_no_progress() {
    const STREAMS: u32 = 60;
    let (echoes, floods) = (Backend::echo().await, endless().await);
    let node = Node::with(WorkerOptions {
        buffered_bytes: 2 << 20,
        stall_timeout: Duration::from_secs(2),
        ..one_worker("a")
    });
    node.publish(vec![
        echo(vec![local("e1", echoes.address)]),
        bulk(vec![local("k1", floods.address)]),
    ]);
    let mut wire = Wire::connect(node.outbound).await;
    let mut bytes = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for n in 0..STREAMS {
        bytes.extend(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * n + 1,
            &block(&BULK),
        ));
    }
    wire.send(&bytes).await;
    floods.until_calls(STREAMS as usize).await;
    let cut = async {
        loop {
            let one: Vec<u8> = (0..STREAMS)
                .flat_map(|n| frame(WINDOW_UPDATE, 0, 2 * n + 1, &1u32.to_be_bytes()))
                .collect();
            wire.send(&one).await;
            if node.workers.metrics().counter(Counter::BoundStall) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    within(cut).await;
    let metrics = node
        .until("half of the bound is free again", |m| {
            m.buffered_bytes <= 1 << 20
        })
        .await;
    assert!(metrics.active_calls > 0, "no more were cut than needed");
    all_well(honest(&node.client().await)).await;
}
