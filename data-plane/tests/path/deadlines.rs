//! `grpc-timeout`: parsed strictly, forwarded with the remaining time, enforced.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server;
use tokio::sync::mpsc;

use crate::fixture::*;

/// A deadline that no machine comes near, and that is passed on in microseconds.
const TOTAL: Duration = Duration::from_secs(60);
const SIXTY_SECONDS: &str = "60S";
/// How long a call is held on its way, at least.
const WHILE: Duration = Duration::from_millis(200);
/// A proxy reads its clock once a turn: what comes in during a turn has come at its beginning. No turn is so long, even
/// where its thread has to wait for a core.
const TURN: Duration = Duration::from_secs(1);

/// Deadlines of which a shorter one may pass, on a machine that stalls, before what a test is about has begun: then the
/// next one shows it.
const PASSING: [(&str, Duration); 3] = [
    ("2S", Duration::from_secs(2)),
    ("6S", Duration::from_secs(6)),
    ("18S", Duration::from_secs(18)),
];

/// Holds a call; says how long for certain.
async fn hold(since: Instant) -> Duration {
    tokio::time::sleep(WHILE).await;
    let held = since.elapsed();
    tokio::time::sleep(TURN).await;
    held
}

/// The deadline that a backend received.
fn left<T>(request: &http::Request<T>) -> Duration {
    let timeout = request.headers()["grpc-timeout"].to_str().unwrap();
    let micros = timeout.strip_suffix('u').unwrap();
    Duration::from_micros(micros.parse().unwrap())
}

/// A call with the long deadline; how long it took.
async fn long_call(client: &Client) -> (Reply, Duration) {
    let call = request("Put").header("grpc-timeout", SIXTY_SECONDS);
    let began = Instant::now();
    let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
    (reply, began.elapsed())
}

/// The same, where the call succeeds.
async fn good_call(client: &Client, way: &str) -> Duration {
    let (reply, took) = long_call(client).await;
    assert_eq!(reply.status(), "0", "{way}: {}", reply.message());
    took
}

/// What was passed on lacks what the call had taken by then, and not more than it took in all.
fn assert_lacks(way: &str, left: Duration, held: Duration, took: Duration) {
    assert!(held >= WHILE);
    assert!(
        left <= TOTAL - held,
        "{way}: {left:?} of {TOTAL:?} passed on after {held:?}"
    );
    assert!(
        left >= TOTAL - took - TURN,
        "{way}: {left:?} of {TOTAL:?} passed on in a call of {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_refused_attempt_took_is_missing_in_the_next() {
    let (send, mut seen) = mpsc::channel(4);
    let attempts = AtomicUsize::new(0);
    let backend = Backend::start(move |request, mut respond| {
        let (came, send) = (Instant::now(), send.clone());
        let first = attempts.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        Box::pin(async move {
            if first {
                send.send((left(&request), hold(came).await)).await.unwrap();
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                send.send((left(&request), Duration::ZERO)).await.unwrap();
                one_frame(request, respond).await;
            }
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let took = good_call(&nodes[0].client().await, way).await;
        let (before, held) = within(seen.recv()).await.unwrap();
        assert!(before <= TOTAL, "{way}: never more than the caller gave");
        let (left, _) = within(seen.recv()).await.unwrap();
        assert_lacks(way, left, held, took);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_wait_for_a_connection_took_is_missing() {
    // Takes each connection at once and speaks only after a while: the last proxy holds the call.
    let (send, mut seen) = mpsc::channel(4);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (came, send) = (Instant::now(), send.clone());
            tokio::spawn(async move {
                let held = hold(came).await;
                let Ok(mut connection) = server::handshake(socket).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    send.send((left(&request), held)).await.unwrap();
                    tokio::spawn(one_frame(request, respond));
                }
            });
        }
    });
    for nth in 0..2 {
        // A server that says nothing for two seconds is given up: on a machine that stalls all is begun anew.
        let (way, took) = within(async {
            loop {
                let [near, far] = paths(address);
                let (way, nodes, service) = if nth == 0 { near } else { far };
                nodes[0].publish(vec![service]);
                let (reply, took) = long_call(&nodes[0].client().await).await;
                match reply.reason() {
                    "" => break (way, took),
                    reason => assert_eq!(reason, "CONNECT_FAILED", "{way}"),
                }
            }
        })
        .await;
        let (left, held) = within(seen.recv()).await.unwrap();
        assert_lacks(way, left, held, took);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_wait_for_endpoints_took_is_missing() {
    let (send, mut seen) = mpsc::channel(4);
    let backend = Backend::start(move |request, respond| {
        let send = send.clone();
        Box::pin(async move {
            send.send(left(&request)).await.unwrap();
            one_frame(request, respond).await;
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        let mut unheld = echo(vec![]);
        unheld.endpoints_known = false;
        nodes[0].publish(vec![unheld]);
        let client = nodes[0].client().await;
        let call = tokio::spawn(async move { good_call(&client, way).await });
        nodes[0].until("it waits", |m| m.waiting_calls == 1).await;
        let held = hold(Instant::now()).await;
        nodes[0].publish(vec![service]);
        let took = within(call).await.unwrap();
        let left = within(seen.recv()).await.unwrap();
        assert_lacks(way, left, held, took);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_enforced_with_a_cancel_upstream() {
    let (reset, mut resets) = mpsc::channel(1);
    let backend = Backend::start(move |request, mut respond| {
        let reset = reset.clone();
        Box::pin(async move {
            drop(request);
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
    for (timeout, total) in PASSING {
        let call = request("Get").header("grpc-timeout", timeout);
        let began = Instant::now();
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        let took = began.elapsed();
        assert!(took >= total - TURN, "{took:?} of {total:?}");
        assert_eq!((reply.status(), reply.reason()), ("4", "DEADLINE_EXCEEDED"));
        assert!(reply.trailers.is_none(), "trailers-only");
        if backend.calls() > 0 {
            assert_eq!(within(resets.recv()).await.unwrap(), h2::Reason::CANCEL);
            return;
        }
    }
    panic!("no call came to the server before its deadline");
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
    let reply = client.call(call("Cancel", "60S"), b"x").await.unwrap();
    assert_eq!((reply.status(), reply.reason()), ("1", "UPSTREAM_RESET"));
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
    let client = node.client().await;
    for (timeout, _) in PASSING {
        let call = request("Get").header("grpc-timeout", timeout);
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        assert_eq!((reply.status(), reply.reason()), ("4", "DEADLINE_EXCEEDED"));
        if let Some(trailers) = reply.trailers {
            assert_eq!(reply.body, b"part");
            for name in ["grpc-status", "heddle-reason"] {
                assert!(trailers.contains_key(name), "no {name} in {trailers:?}");
            }
            return;
        }
    }
    panic!("no headers came before their deadline");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_status_cancelled_at_the_deadline_is_the_deadline_and_before_it_a_status() {
    let backend = Backend::start(|request, mut respond| {
        let left = request.headers()["grpc-timeout"].to_str().unwrap();
        let left: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let cancelled = |head: http::HeaderMap| {
            let mut head = head;
            head.insert("grpc-status", "1".parse().unwrap());
            head.insert("grpc-message", "Timeout%20expired".parse().unwrap());
            head
        };
        Box::pin(async move {
            let begun = (method == "Late").then(|| {
                let mut stream = respond.send_response(ok_headers(), false).unwrap();
                let part = Bytes::from_static(b"part");
                stream.send_data(part, false).unwrap();
                stream
            });
            // As tonic does, with a clock that is a little ahead of the proxy's.
            if method != "Cancel" {
                tokio::time::sleep(Duration::from_micros(left.saturating_sub(3_000))).await;
            }
            if let Some(mut stream) = begun {
                let _ = stream.send_trailers(cancelled(http::HeaderMap::new()));
                return;
            }
            let mut response = ok_headers();
            *response.headers_mut() = cancelled(response.headers().clone());
            let _ = respond.send_response(response, true);
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        let call = |method, timeout| {
            let call = request(method).header("grpc-timeout", timeout);
            call.body(()).unwrap()
        };
        // The first call also makes the connections.
        let reply = client.call(call("Cancel", "60S"), b"x").await.unwrap();
        assert_eq!((reply.status(), reply.reason()), ("1", ""), "{way}");
        for method in ["Get", "Late"] {
            let reply = client.call(call(method, "2S"), b"x").await.unwrap();
            assert_eq!(
                (reply.status(), reply.reason()),
                ("4", "DEADLINE_EXCEEDED"),
                "{way}, {method}"
            );
            assert_eq!(reply.trailers.is_none(), method == "Get", "{way}, {method}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_of_nothing_has_passed_and_the_call_goes_nowhere() {
    let backend = Backend::echo().await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let client = node.client().await;
    for nothing in ["0n", "0S", "00000000H"] {
        let call = request("Get").header("grpc-timeout", nothing);
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        assert_eq!(
            (reply.status(), reply.reason()),
            ("4", "DEADLINE_EXCEEDED"),
            "{nothing}"
        );
    }
    assert_eq!(backend.calls(), 0);
}

/// A client enforces its deadline itself, and its cancel can be faster than the proxy's timer.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_at_the_deadline_counts_as_the_deadline_and_an_early_one_as_a_cancel() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        for (timeout, wait, status) in [("1H", 0, 1), ("200m", 190, 4)] {
            let call = request("Get").header("grpc-timeout", timeout);
            let began = Instant::now();
            let (_answer, mut send) = client.open(call.body(()).unwrap(), true).await;
            tokio::time::sleep(Duration::from_millis(wait).saturating_sub(began.elapsed())).await;
            send.send_reset(h2::Reason::CANCEL);
            nodes[0]
                .until(way, |m| {
                    let of_status = m.calls.iter().map(|calls| calls.status[status]);
                    of_status.sum::<u64>() == 1
                })
                .await;
        }
    }
}
