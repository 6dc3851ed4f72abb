//! Resets, responses that are too large to forward, unknown statuses, and per-hop headers keep their meaning (issue 10,
//! C2).

use http::HeaderValue;
use tokio::sync::mpsc;

use crate::fixture::*;
use crate::wire::{self, Wire};

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_becomes_the_status_that_grpc_gives_its_code() {
    let backend = Backend::start(|request, mut respond| {
        Box::pin(async move {
            let code = request.headers()["x-code"].to_str().unwrap();
            let code = h2::Reason::from(code.parse::<u32>().unwrap());
            if request.headers().contains_key("x-late") {
                let mut stream = respond.send_response(ok_headers(), false).unwrap();
                tokio::task::yield_now().await;
                return stream.send_reset(code);
            }
            respond.send_reset(code);
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        for (code, status) in [
            (0, "13"),
            (1, "13"),
            (2, "13"),
            (8, "1"),
            (11, "8"),
            (12, "7"),
            (99, "13"),
        ] {
            for late in [false, true] {
                let mut call = request("Put").header("x-code", code);
                if late {
                    call = call.header("x-late", "1");
                }
                let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
                assert_eq!(
                    (reply.status(), reply.reason()),
                    (status, "UPSTREAM_RESET"),
                    "{way}: code {code}, late: {late}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_body_that_is_too_large_keeps_its_status_and_message() {
    let backend = Backend::start(|request, mut respond| {
        Box::pin(async move {
            let end = request.uri().path().ends_with("Put");
            let mut answer = ok_headers();
            let large = HeaderValue::from_str(&"x".repeat(40_000)).unwrap();
            answer
                .headers_mut()
                .insert("grpc-status-details-bin", large);
            answer.headers_mut().insert("grpc-status", 5.into());
            let message = HeaderValue::from_static("no%20such%20user");
            answer.headers_mut().insert("grpc-message", message);
            let _ = respond.send_response(answer, end);
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        let reply = client.put(b"x").await;
        assert_eq!(
            (reply.status(), reply.message(), reply.reason()),
            ("5", "no%20such%20user", ""),
            "{way}"
        );
        assert!(reply.trailers.is_none(), "{way}: it stays one list");
        assert_eq!(
            (reply.http_status, reply.get("content-type")),
            (200, "application/grpc"),
            "{way}"
        );
        assert!(reply.get("grpc-status-details-bin").is_empty(), "{way}");
        // With a body to come there is no status yet to keep.
        let large = request("Large").body(()).unwrap();
        let reply = client.call(large, b"x").await.unwrap();
        let outcome = (reply.status(), reply.reason());
        assert_eq!(outcome, ("13", "RESPONSE_INVALID"), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_nobody_knows_passes_and_counts_as_unknown() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let mut answer = ok_headers();
            answer.headers_mut().insert("grpc-status", 99.into());
            let _ = respond.send_response(answer, true);
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    let reply = node.client().await.put(b"x").await;
    assert_eq!(reply.status(), "99");
    node.until("it counts as UNKNOWN", |m| {
        m.calls.iter().any(|call| call.status[2] == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hop_says_its_own_scheme_and_that_it_takes_trailers() {
    let (send, mut seen) = mpsc::channel(1);
    let backend = Backend::start(move |request, respond| {
        let (uri, te) = (request.uri().clone(), request.headers().get("te").cloned());
        let send = send.clone();
        Box::pin(async move {
            send.send((uri, te)).await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let client = nodes[0].client().await;
        // From behind a proxy that ended TLS and dropped what was for its own hop.
        let call = http::Request::post("https://echo.default/test.Echo/Put")
            .header("content-type", "application/grpc");
        let reply = client.call(call.body(()).unwrap(), b"x").await.unwrap();
        assert_eq!(reply.status(), "0", "{way}");
        let (uri, te) = within(seen.recv()).await.unwrap();
        assert_eq!(uri, "http://echo.default/test.Echo/Put", "{way}");
        assert_eq!(te.unwrap(), "trailers", "{way}");
        // What is no gRPC says for itself whether it takes trailers.
        let call = http::Request::get("http://echo.default/page").body(());
        let _ = client.call(call.unwrap(), b"").await.unwrap();
        assert_eq!(within(seen.recv()).await.unwrap().1, None, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_servers_refuse_is_mended() {
    let (send, mut seen) = mpsc::channel(1);
    let backend = Backend::start(move |request, respond| {
        let authority = request.uri().authority().cloned();
        let (send, host) = (send.clone(), request.headers().get("host").cloned());
        Box::pin(async move {
            send.send((authority, host)).await.unwrap();
            echo_answer(request, respond).await;
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        for (given, host, expect) in [
            (Some(""), None, "localhost"),
            (Some(""), Some(""), "localhost"),
            (None, None, "localhost"),
            (None, Some("[fe80::1%eth0]:80"), "[fe80::1]:80"),
            (Some("[fe80::1%25eth0]:80"), None, "[fe80::1]:80"),
            (
                Some("[fe80::1%eth0]:80"),
                Some("[fe80::1%eth0]:80"),
                "[fe80::1]:80",
            ),
            (Some("%2Ftmp%2Fsock"), Some("%2Ftmp%2Fsock"), "localhost"),
        ] {
            let mut caller = Wire::connect(nodes[0].outbound).await;
            let mut fields: Vec<_> = wire::CALL
                .into_iter()
                .filter_map(|(name, value)| match name {
                    ":authority" => Some((name, given?)),
                    _ => Some((name, value)),
                })
                .collect();
            fields.extend(host.map(|host| ("host", host)));
            let ends = wire::END_HEADERS | wire::END_STREAM;
            let head = wire::frame(wire::HEADERS, ends, 1, &wire::block(&fields));
            caller.send(&head).await;
            let (authority, sent_host) = within(seen.recv()).await.unwrap();
            assert_eq!(
                (authority.unwrap().as_str(), sent_host),
                (expect, None),
                "{way}: {given:?}, host {host:?}"
            );
        }
    }
}

/// Issue 10, A1e: all calls are on one connection to the instance.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_of_megabytes_ends_no_other_call() {
    let (send, mut arrived) = mpsc::channel(24);
    let (release, released) = tokio::sync::watch::channel(0);
    let backend = Backend::start(move |request, mut respond| {
        let (send, mut released) = (send.clone(), released.clone());
        Box::pin(async move {
            let Some(bytes) = request.headers().get("x-bytes") else {
                let round = *released.borrow_and_update();
                send.send(()).await.unwrap();
                released.wait_for(|now| *now > round).await.unwrap();
                return echo_answer(request, respond).await;
            };
            let half = bytes.to_str().unwrap().parse::<usize>().unwrap() / 2;
            let mut answer = ok_headers();
            for name in ["x-big", "grpc-status-details-bin"] {
                let value = HeaderValue::from_str(&"x".repeat(half)).unwrap();
                answer.headers_mut().insert(name, value);
            }
            answer.headers_mut().insert("grpc-status", 5.into());
            let _ = respond.send_response(answer, true);
        })
    })
    .await;
    let node = Node::start("a");
    node.publish(vec![echo(vec![local("e1", backend.address)])]);
    for bytes in [1 << 20, 4 << 20] {
        let mut others = Vec::new();
        for _ in 0..24 {
            let client = node.client().await;
            others.push(tokio::spawn(async move { client.put(b"x").await }));
            within(arrived.recv()).await.unwrap();
        }
        let call = request("Put").header("x-bytes", bytes).body(()).unwrap();
        let reply = node.client().await.call(call, b"x").await.unwrap();
        assert_eq!((reply.status(), reply.reason()), ("5", ""), "{bytes}");
        release.send_modify(|round| *round += 1);
        for other in others {
            assert_eq!(within(other).await.unwrap().status(), "0", "{bytes}");
        }
    }
}

/// Issue 10, C2.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_after_hundreds_of_fields_is_kept() {
    let backend = Backend::start(|_, mut respond| {
        Box::pin(async move {
            let mut answer = ok_headers();
            for n in 0..300 {
                let name = http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
                answer.headers_mut().insert(name, 1.into());
            }
            answer.headers_mut().insert("grpc-status", 5.into());
            let message = HeaderValue::from_static("no%20such%20user");
            answer.headers_mut().insert("grpc-message", message);
            let _ = respond.send_response(answer, true);
        })
    })
    .await;
    for (way, nodes, service) in paths(backend.address) {
        nodes[0].publish(vec![service]);
        let reply = nodes[0].client().await.put(b"x").await;
        assert_eq!(
            (reply.status(), reply.message(), reply.reason()),
            ("5", "no%20such%20user", ""),
            "{way}"
        );
    }
}
