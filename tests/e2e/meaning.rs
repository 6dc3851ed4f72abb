//! Resets, deadlines, cancels, trailers-only responses and metadata keep their meaning over one hop and over two.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::Reason;
use heddle_tests::raw::{Answer, Call, Client, body, frame, read};
use heddle_tests::wait::TIMEOUT;
use http::{HeaderMap, Response};
use tokio::sync::{Semaphore, mpsc};

use crate::raw_service::{RAW, RawMesh, custom, fields, ok};

/// Waits for a report of the raw service, as long as a slow machine may need.
async fn next<T>(reports: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(TIMEOUT, reports.recv())
        .await
        .expect("the service reports in time")
        .expect("the service runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_by_the_service_is_cancelled() {
    let go = Arc::new(Semaphore::new(0));
    let raw = RawMesh::start(move |mut call: Call| {
        let go = Arc::clone(&go);
        async move {
            let _ = body(call.request.body_mut()).await;
            match call.request.uri().path() {
                "/raw.Raw/Early" => call.respond.send_reset(Reason::CANCEL),
                "/raw.Raw/Late" => {
                    let mut stream = call.respond.send_response(Call::head(), false).unwrap();
                    stream.send_data(frame(b"first"), false).unwrap();
                    go.acquire().await.unwrap().forget();
                    stream.send_reset(Reason::CANCEL);
                }
                _ => {
                    go.add_permits(1);
                    call.answer(&[b"y"], ok());
                }
            }
        }
    })
    .await;
    let none = HeaderMap::new();
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let answer = client.call(RAW, "/raw.Raw/Early", &none, b"x").await;
        let headers = ["grpc-status", "heddle-reason"].map(|name| answer.last(name));
        let cancelled = ["1", "UPSTREAM_RESET"].map(|value| Some(value.to_owned()));
        assert_eq!(headers, cancelled, "{way}: {answer:?}");

        // After headers and a message, when both have arrived.
        let (response, mut stream) = client.begin(RAW, "/raw.Raw/Late", &none).await;
        stream.send_data(frame(b"x"), true).unwrap();
        let mut answer = response.await.unwrap().into_body();
        assert_eq!(
            answer.data().await.unwrap().unwrap(),
            frame(b"first"),
            "{way}"
        );
        client.call(RAW, "/raw.Raw/Go", &none, b"x").await;
        body(&mut answer).await.unwrap();
        let trailers = answer.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "1", "{way}: {trailers:?}");
        assert_eq!(trailers["heddle-reason"], "UPSTREAM_RESET", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_deadline_is_status_4_and_reaches_the_service_as_cancel() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let raw = RawMesh::start(move |mut call: Call| {
        let report = report.clone();
        async move {
            let timeout = call.request.headers().get("grpc-timeout").cloned();
            let reason = if call.request.uri().path() == "/raw.Raw/Late" {
                let mut stream = call.respond.send_response(Call::head(), false).unwrap();
                stream.send_data(frame(b"first"), false).unwrap();
                poll_fn(|cx| stream.poll_reset(cx)).await
            } else {
                poll_fn(|cx| call.respond.poll_reset(cx)).await
            };
            report.send((timeout, reason.ok())).unwrap();
        }
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        for path in ["/raw.Raw/Early", "/raw.Raw/Late"] {
            let (answer, given, (timeout, reset)) = expired(&client, path, &mut reports).await;
            assert_eq!(
                answer.last("grpc-status").as_deref(),
                Some("4"),
                "{way}, {path}: {answer:?}"
            );
            let reason = answer.last("heddle-reason");
            assert_eq!(
                reason.as_deref(),
                Some("DEADLINE_EXCEEDED"),
                "{way}, {path}: {answer:?}"
            );
            assert_eq!(
                answer.headers_only,
                path == "/raw.Raw/Early",
                "{way}, {path}: {answer:?}"
            );
            assert_eq!(reset, Some(Reason::CANCEL), "{way}, {path}");
            // The exact value depends on speed here; it does not in `path::deadlines` of the data plane.
            let left = milliseconds(
                timeout
                    .expect("grpc-timeout is passed on")
                    .to_str()
                    .unwrap(),
            );
            assert!(
                (1..=given).contains(&left),
                "{way}, {path}: passed on as {left} ms of {given}"
            );
        }
    }
}

/// A call whose deadline passes at the stage that its path names: the milliseconds that it was given, and what the service
/// reports of it. On a slow machine the deadline may pass earlier; then the call is repeated with more time.
async fn expired<R>(
    client: &Client,
    path: &str,
    reports: &mut mpsc::UnboundedReceiver<R>,
) -> (Answer, u64, R) {
    for given in [700, 4_000, 20_000] {
        let headers = fields(&[("grpc-timeout", &format!("{given}m"))]);
        let answer = client.call(RAW, path, &headers, b"x").await;
        let begun = !answer.headers_only || path == "/raw.Raw/Early";
        let patience = if begun { TIMEOUT / 3 } else { TIMEOUT / 30 };
        match tokio::time::timeout(patience, reports.recv()).await {
            Ok(report) if begun => return (answer, given, report.expect("the service runs")),
            _ => {}
        }
    }
    panic!("{path}: no call came to the service before its deadline");
}

fn milliseconds(timeout: &str) -> u64 {
    let (number, unit) = timeout.split_at(timeout.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "n" => number / 1_000_000,
        "u" => number / 1_000,
        "m" => number,
        "S" => number * 1_000,
        other => panic!("unit {other}"),
    }
}

/// A service that never answers, and reports each call when it arrives (`None`) and how it was reset.
async fn hanging() -> (RawMesh, mpsc::UnboundedReceiver<Option<Reason>>) {
    let (report, reports) = mpsc::unbounded_channel();
    let raw = RawMesh::start(move |mut call: Call| {
        let report = report.clone();
        async move {
            report.send(None).unwrap();
            let reason = poll_fn(|cx| call.respond.poll_reset(cx)).await;
            report.send(Some(reason.unwrap())).unwrap();
        }
    })
    .await;
    (raw, reports)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_by_the_caller_reaches_the_service() {
    let (raw, mut reports) = hanging().await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let (response, mut stream) = client.begin(RAW, "/raw.Raw/Hang", &HeaderMap::new()).await;
        stream.send_data(frame(b"x"), false).unwrap();
        assert_eq!(next(&mut reports).await, None, "{way}: the call arrives");
        stream.send_reset(Reason::CANCEL);
        assert_eq!(next(&mut reports).await, Some(Reason::CANCEL), "{way}");
        drop(response);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_cancels_its_calls() {
    let (raw, mut reports) = hanging().await;
    for (way, addr) in raw.ways() {
        let mut relay = heddle_tests::faults::Forwarder::to(addr).await;
        let client = Client::connect(relay.addr).await;
        let (_response, mut stream) = client.begin(RAW, "/raw.Raw/Hang", &HeaderMap::new()).await;
        stream.send_data(frame(b"x"), false).unwrap();
        assert_eq!(next(&mut reports).await, None, "{way}: the call arrives");
        relay.cut().await;
        assert_eq!(next(&mut reports).await, Some(Reason::CANCEL), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailers_only_answer_stays_one() {
    let raw = RawMesh::start(|mut call: Call| async move {
        let _ = body(call.request.body_mut()).await;
        let response = Response::builder()
            .header("content-type", "application/grpc+proto")
            .header("grpc-status", "5")
            .header("grpc-message", "no%20such%20thing")
            .header("x-trace", "1")
            .body(())
            .unwrap();
        call.respond.send_response(response, true).unwrap();
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let answer = client
            .call(RAW, "/raw.Raw/Missing", &HeaderMap::new(), b"x")
            .await;
        assert!(answer.headers_only, "{way}: {answer:?}");
        let expected = [
            ("content-type", "application/grpc+proto"),
            ("grpc-status", "5"),
            ("grpc-message", "no%20such%20thing"),
            ("x-trace", "1"),
        ];
        assert_eq!(answer.headers, fields(&expected), "{way}");
        assert_eq!(
            (answer.status, answer.trailers, answer.body.len()),
            (200, None, 0),
            "{way}"
        );
    }
}

const METADATA: &[(&str, &str)] = &[
    ("x-b", "1"),
    ("x-a", "first"),
    ("x-a", "second, with a comma"),
    ("x-data-bin", "AAEC/w"),
    ("x-data-bin", "/w"),
    ("x-empty", ""),
    ("x-c", "3"),
];

#[tokio::test(flavor = "multi_thread")]
async fn metadata_keeps_its_order_its_duplicates_and_its_bytes() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let raw = RawMesh::start(move |mut call: Call| {
        let report = report.clone();
        async move {
            let _ = body(call.request.body_mut()).await;
            report.send(call.request.headers().clone()).unwrap();
            let mut head = Call::head();
            head.headers_mut().extend(fields(METADATA));
            let mut stream = call.respond.send_response(head, false).unwrap();
            stream.send_data(frame(b"y"), false).unwrap();
            let mut trailers = ok();
            trailers.extend(fields(METADATA));
            stream.send_trailers(trailers).unwrap();
        }
    })
    .await;
    let expected = custom(&fields(METADATA));
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let answer = client
            .call(RAW, "/raw.Raw/Meta", &fields(METADATA), b"x")
            .await;
        assert_eq!(
            custom(&next(&mut reports).await),
            expected,
            "{way}: request"
        );
        assert_eq!(custom(&answer.headers), expected, "{way}: response headers");
        assert_eq!(
            custom(&answer.trailers.unwrap()),
            expected,
            "{way}: trailers"
        );
        assert_eq!(answer.body, frame(b"y"), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heddles_own_headers_cannot_be_forged() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let raw = RawMesh::start(move |mut call: Call| {
        let report = report.clone();
        async move {
            let _ = body(call.request.body_mut()).await;
            report.send(call.request.headers().clone()).unwrap();
            let mut head = Call::head();
            head.headers_mut()
                .extend(fields(&[("heddle-reason", "NO_ROUTE"), ("x-kept", "1")]));
            let mut stream = call.respond.send_response(head, false).unwrap();
            let forged = [
                ("grpc-status", "14"),
                ("heddle-unprocessed", "1"),
                ("heddle-reason", "DENIED"),
            ];
            stream.send_trailers(fields(&forged)).unwrap();
        }
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let forged = [
            ("heddle-from", "default/admin"),
            ("heddle-to", "default/other/x"),
            ("heddle-anything", "1"),
            ("x-kept", "1"),
        ];
        let answer = client
            .call(RAW, "/raw.Raw/Forge", &fields(&forged), b"x")
            .await;
        let received = next(&mut reports).await;
        assert_eq!(received.get("x-kept").unwrap(), "1", "{way}");
        assert_ne!(
            received
                .get("heddle-from")
                .map_or("", |value| value.to_str().unwrap()),
            "default/admin",
            "{way}"
        );
        assert!(
            !received.contains_key("heddle-anything"),
            "{way}: {received:?}"
        );
        assert!(!received.contains_key("heddle-to"), "{way}: {received:?}");

        assert_eq!(answer.headers.get("x-kept").unwrap(), "1", "{way}");
        let trailers = answer.trailers.as_ref().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14", "{way}");
        for map in [&answer.headers, trailers] {
            let ours = map
                .keys()
                .filter(|name| name.as_str().starts_with("heddle-"));
            assert_eq!(ours.count(), 0, "{way}: {map:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_authority_and_content_type_arrive_as_sent() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let raw = RawMesh::start(move |mut call: Call| {
        let report = report.clone();
        async move {
            let _ = body(call.request.body_mut()).await;
            let authority = call.request.uri().authority().map(ToString::to_string);
            report.send(authority).unwrap();
            call.answer(&[b"y"], ok());
        }
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        for authority in ["raw.default", "raw", "raw.default.mesh:443"] {
            let answer = client
                .call(authority, "/raw.Raw/Who", &HeaderMap::new(), b"x")
                .await;
            assert_eq!(
                answer.last("grpc-status").as_deref(),
                Some("0"),
                "{way}: {answer:?}"
            );
            assert_eq!(
                next(&mut reports).await.as_deref(),
                Some(authority),
                "{way}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_service_refuses_is_tried_again_and_not_seen_by_the_caller() {
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let raw = RawMesh::start(move |mut call: Call| {
        let count = Arc::clone(&count);
        async move {
            // Every second call is refused: provably not processed, so safe to send again.
            if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                call.respond.send_reset(Reason::REFUSED_STREAM);
                return;
            }
            let _ = body(call.request.body_mut()).await;
            call.answer(&[b"y"], ok());
        }
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        for _ in 0..5 {
            let (response, mut stream) =
                client.begin(RAW, "/raw.Raw/Again", &HeaderMap::new()).await;
            stream.send_data(frame(b"x"), true).unwrap();
            let answer = read(response).await;
            assert_eq!(
                answer.last("grpc-status").as_deref(),
                Some("0"),
                "{way}: {answer:?}"
            );
        }
    }
    assert_eq!(refused.load(Ordering::Relaxed), 20);
}
