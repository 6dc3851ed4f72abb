//! Calls that cannot be routed, are too large or are not HTTP/2: each gets its own error of docs/errors.md, and other
//! calls are not affected.

use heddle_tests::echo::{Failed, call, channel_as, echo, payload, reach};
use heddle_tests::mesh::Mesh;
use heddle_tests::raw::{Answer, Client};
use heddle_tests::wait::TIMEOUT;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

async fn one_echo() -> Mesh {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    mesh
}

async fn call_as(mesh: &Mesh, authority: &str) -> Failed {
    let mut client = echo(channel_as(mesh.node("a").outbound, authority));
    let status = client.unary(payload("x")).await.unwrap_err();
    Failed::from(&status)
}

async fn raw_call(mesh: &Mesh, path: &str, headers: &HeaderMap) -> Answer {
    let addr = mesh.node("a").outbound;
    let client = Client::connect(addr).await;
    client.call(&addr.to_string(), path, headers, b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_proto_service_is_no_route() {
    let mesh = one_echo().await;
    let answer = raw_call(&mesh, "/nobody.Knows/It", &HeaderMap::new()).await;
    assert!(answer.headers_only, "{answer:?}");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.last("grpc-status").as_deref(), Some("12"));
    assert_eq!(answer.last("heddle-reason").as_deref(), Some("NO_ROUTE"));
    let message = answer.last("grpc-message").unwrap();
    assert!(message.contains("nobody.Knows"), "{message}");
    assert!(
        answer.headers.contains_key("heddle-call"),
        "no id in {answer:?}"
    );
    assert!(
        !answer.headers.contains_key("grpc-status-details-bin"),
        "{answer:?}"
    );
    reach(&mesh.channel("a"), &["e1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_authority_is_no_route_and_names_the_nearest() {
    let mesh = one_echo().await;
    for authority in [
        "heddle-ecko",
        "heddle-eco.default",
        "hedle-echo.default.mesh:80",
    ] {
        let failed = call_as(&mesh, authority).await;
        failed.assert(Code::Unimplemented, "NO_ROUTE", &["heddle-echo"]);
    }
    // A wrong name never falls back to the path, even if the path is known.
    call_as(&mesh, "something-else.entirely").await.assert(
        Code::Unimplemented,
        "NO_ROUTE",
        &["something-else"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_last_instance_left_says_so() {
    let mut mesh = one_echo().await;
    mesh.echo("a", "e2").await;
    mesh.stop_instance("a", "e1").await;
    mesh.stop_instance("a", "e2").await;
    let addr = mesh.node("a").outbound;
    for _ in 0..2 {
        // At once: the service stays known, and the message says what is missing.
        let failed = call(addr, payload("x")).await.unwrap_err();
        failed.assert(Code::Unavailable, "NO_ENDPOINTS", &["heddle-echo"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_over_the_bound_are_refused_with_the_size_and_the_connection_goes_on() {
    let mesh = one_echo().await;
    let addr = mesh.node("a").outbound;
    let client = Client::connect(addr).await;
    let mut large = HeaderMap::new();
    for number in 0..10 {
        let name = HeaderName::try_from(format!("x-large-{number}")).unwrap();
        large.insert(name, HeaderValue::try_from("v".repeat(4_000)).unwrap());
    }
    let mut many = HeaderMap::new();
    for number in 0..300 {
        let name = HeaderName::try_from(format!("x-many-{number}")).unwrap();
        many.insert(name, HeaderValue::from_static("v"));
    }
    let path = "/heddle.echo.v1.Echo/Unary";
    for headers in [&large, &many] {
        let answer = client.call(&addr.to_string(), path, headers, b"").await;
        assert_eq!(
            answer.last("grpc-status").as_deref(),
            Some("8"),
            "{answer:?}"
        );
        let reason = answer.last("heddle-reason");
        assert_eq!(reason.as_deref(), Some("REQUEST_TOO_LARGE"), "{answer:?}");
    }
    let answer = client
        .call(&addr.to_string(), path, &HeaderMap::new(), b"")
        .await;
    assert_eq!(
        answer.last("grpc-status").as_deref(),
        Some("0"),
        "{answer:?}"
    );
}

/// A plain HTTP/2 request without gRPC's content type.
async fn plain(
    addr: std::net::SocketAddr,
    authority: &str,
    headers: &HeaderMap,
) -> (u16, HeaderMap, String) {
    let socket = TcpStream::connect(addr).await.unwrap();
    let (mut send, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::get(format!("http://{authority}/page"))
        .body(())
        .unwrap();
    request.headers_mut().extend(headers.clone());
    let (response, _) = send.send_request(request, true).unwrap();
    let (parts, mut stream) = response.await.unwrap().into_parts();
    let text = heddle_tests::raw::body(&mut stream).await.unwrap();
    (
        parts.status.as_u16(),
        parts.headers,
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn without_grpcs_content_type_the_http_status_of_the_same_meaning_is_used() {
    let mesh = one_echo().await;
    let addr = mesh.node("a").outbound;
    let (status, headers, text) = plain(addr, "heddle-ecko", &HeaderMap::new()).await;
    assert_eq!(status, 404, "{headers:?} {text}");
    assert_eq!(headers.get("heddle-reason").unwrap(), "NO_ROUTE");
    assert!(!headers.contains_key("grpc-status"), "{headers:?}");
    assert!(text.contains("heddle-echo"), "no nearest name in {text:?}");

    let mut large = HeaderMap::new();
    for number in 0..10 {
        let name = HeaderName::try_from(format!("x-large-{number}")).unwrap();
        large.insert(name, HeaderValue::try_from("v".repeat(4_000)).unwrap());
    }
    let (status, headers, _) = plain(addr, "heddle-echo", &large).await;
    assert_eq!(status, 431, "{headers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_protocol_is_cut_off_alone() {
    let mesh = one_echo().await;
    let addr = mesh.node("a").outbound;
    let neighbour = mesh.channel("a");
    reach(&neighbour, &["e1"]).await;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let faults: [(&str, Vec<u8>); 4] = [
        ("noise", vec![0xff; 4_096]),
        // A DATA frame on a stream that was never opened.
        (
            "data on idle",
            [PREFACE, settings, &[0, 0, 1, 0, 0, 0, 0, 0, 1, 7]].concat(),
        ),
        // A frame longer than SETTINGS_MAX_FRAME_SIZE.
        (
            "oversized frame",
            [PREFACE, settings, &[0x0f, 0xff, 0xff, 1, 4, 0, 0, 0, 1]].concat(),
        ),
        // An HPACK index that nobody defined.
        (
            "bad index",
            [PREFACE, settings, &[0, 0, 2, 1, 5, 0, 0, 0, 1, 0xff, 0x7f]].concat(),
        ),
    ];
    for (fault, bytes) in faults {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        let mut received = Vec::new();
        let end = tokio::time::timeout(TIMEOUT, socket.read_to_end(&mut received)).await;
        let end = end.unwrap_or_else(|_| panic!("{fault}: the connection stays open"));
        // Closed in order, after a GOAWAY where HTTP/2 was spoken: not torn down with a TCP reset.
        assert!(end.is_ok(), "{fault}: {end:?}");
        if fault != "noise" {
            assert!(has_goaway(&received), "{fault}: no GOAWAY in {received:?}");
        }
    }
    reach(&neighbour, &["e1"]).await;
}

fn has_goaway(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = frames {
        if *kind == 7 {
            return true;
        }
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}
