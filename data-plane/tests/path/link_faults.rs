//! HTTP/2 errors on an established link: a peer that has sent Hello and has an open call violates RFC 9113. Frames are
//! written by hand; asserted are the frame in response and which calls survive. What h2spec tests as an unknown peer is
//! not repeated here.

use heddle_h2::ErrorCode;
use heddle_proto::link::v1::{HelloRequest, HelloResponse};
use prost::Message as _;

use crate::fixture::*;
use crate::wire::*;

/// The stream of Hello, that of the call under way, one that was skipped, and the one that faults come on.
const HELLO: u32 = 1;
const SKIPPED: u32 = 3;
const OPEN: u32 = 5;
const FAULTY: u32 = 7;

/// What a proxy sends for a call, and these fields after it.
fn call(more: &[Pair]) -> Vec<u8> {
    block(&[&CALL[..], &[("heddle-to", "default/echo/e1")], more].concat())
}

fn head(stream: u32, more: &[Pair]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call(more))
}

/// A peer's connection to inbound after Hello.
struct Link(Wire);

impl Link {
    async fn establish(node: &Node, peer: &str) -> Self {
        let mut link = Self(Wire::connect(node.inbound).await);
        let hello = HelloRequest {
            min_version: 1,
            max_version: 1,
            node: peer.to_owned(),
            incarnation: format!("incarnation-{peer}"),
            grants: Vec::new(),
        };
        let request = block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/heddle.link.v1.Link/Hello"),
            (":authority", "b.node.mesh"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]);
        let mut bytes = frame(HEADERS, END_HEADERS, HELLO, &request);
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(hello.encoded_len()).unwrap().to_be_bytes());
        message.extend(hello.encode_to_vec());
        bytes.extend(frame(DATA, END_STREAM, HELLO, &message));
        link.0.send(&bytes).await;
        let answer = link.ends_well(HELLO).await;
        let answer = HelloResponse::decode(&answer[5..]).unwrap();
        assert_eq!((answer.version, answer.node.as_str()), (1, "b"));
        link
    }

    /// Begins a call on a stream, and awaits that the service has begun to answer it.
    async fn begin(&mut self, stream: u32) {
        self.0.send(&head(stream, &[])).await;
        let frame = loop {
            let frame = self.0.frame().await.expect("the link lives");
            if frame.kind != WINDOW_UPDATE {
                break frame;
            }
        };
        assert_eq!((frame.kind, frame.stream), (HEADERS, stream));
        let fields = self.0.decode(&frame);
        assert_eq!(fields.status(), Some(200));
        let failed = fields.get(b"grpc-message").map(String::from_utf8_lossy);
        assert_eq!(frame.flags & END_STREAM, 0, "it has ended: {failed:?}");
    }

    /// Sends the body of a call under way, and awaits its echo.
    async fn finish(&mut self, stream: u32) {
        self.0
            .send(&frame(DATA, END_STREAM, stream, b"still here"))
            .await;
        assert_eq!(self.ends_well(stream).await, b"still here");
    }

    /// Awaits the end of a stream with `grpc-status: 0`: its body.
    async fn ends_well(&mut self, stream: u32) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let frame = self.0.frame().await.expect("the link lives");
            match frame.kind {
                HEADERS => {
                    let fields = self.0.decode(&frame);
                    if frame.stream == stream && frame.flags & END_STREAM != 0 {
                        assert_eq!(fields.get(b"grpc-status"), Some(&b"0"[..]));
                        return body;
                    }
                }
                DATA if frame.stream == stream => body.extend_from_slice(&frame.payload),
                RST_STREAM | GOAWAY => panic!(
                    "frame {} on stream {}: {}",
                    frame.kind,
                    frame.stream,
                    frame.code()
                ),
                _ => {}
            }
        }
    }

    /// Awaits the answer to a fault: the first RST_STREAM or GOAWAY.
    async fn verdict(&mut self) -> (u8, u32, ErrorCode) {
        loop {
            let frame = self.0.frame().await.expect("an answer before the end");
            match frame.kind {
                RST_STREAM | GOAWAY => return (frame.kind, frame.stream, frame.code()),
                HEADERS => drop(self.0.decode(&frame)),
                _ => {}
            }
        }
    }

    /// Awaits that the other side closes.
    async fn closes(&mut self) {
        while let Some(frame) = self.0.frame().await {
            assert!(
                frame.kind == GOAWAY || frame.kind == RST_STREAM,
                "{} after GOAWAY",
                frame.kind
            );
        }
    }
}

/// A node `b` with the service, and the link of another node than the one that is at fault.
async fn stage() -> (Node, Backend, Link) {
    let backend = Backend::echo().await;
    // One worker: both links are in the same hands.
    let b = Node::with(heddle_proxy::worker::WorkerOptions {
        workers: 1,
        ..options("b")
    });
    b.publish(vec![on_b("e1", backend.address)]);
    // Its connection to the service stands by then: a machine that stalls may need more than one attempt for that.
    let client = b.client().await;
    within(async { while client.put(b"x").await.status() != "0" {} }).await;
    let other = Link::establish(&b, "other").await;
    (b, backend, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_connection_end_that_link_and_no_other() {
    let too_long = [&[0xff, 0xff, 0xff, HEADERS, END_HEADERS][..], &[0, 0, 0, 7]].concat();
    let window = |increment: u32| frame(WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
    let cases = [
        (
            "PING of 7 bytes",
            frame(PING, 0, 0, &[0; 7]),
            ErrorCode::FRAME_SIZE_ERROR,
        ),
        (
            "HEADERS over the largest frame",
            too_long,
            ErrorCode::FRAME_SIZE_ERROR,
        ),
        (
            "DATA on stream 0",
            frame(DATA, 0, 0, b"x"),
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            "HEADERS on an even stream",
            head(FAULTY + 1, &[]),
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            "HEADERS on a skipped stream",
            head(SKIPPED, &[]),
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            "HEADERS on Hello's closed stream",
            head(HELLO, &[]),
            ErrorCode::STREAM_CLOSED,
        ),
        // An index that no table has (RFC 7541 §2.3.3).
        (
            "broken HPACK",
            frame(HEADERS, END_HEADERS, FAULTY, &[0xfe]),
            ErrorCode::COMPRESSION_ERROR,
        ),
        (
            "connection window over 2^31-1",
            window(0x7fff_ffff),
            ErrorCode::FLOW_CONTROL_ERROR,
        ),
        ("increment of 0", window(0), ErrorCode::PROTOCOL_ERROR),
    ];
    let (b, _backend, mut other) = stage().await;
    for (number, (what, fault, code)) in cases.into_iter().enumerate() {
        let stream = OPEN + 2 * u32::try_from(number).unwrap();
        other.begin(stream).await;
        let mut link = Link::establish(&b, "a").await;
        link.begin(OPEN).await;
        link.0.send(&fault).await;
        assert_eq!(link.verdict().await, (GOAWAY, 0, code), "{what}");
        link.closes().await;
        other.finish(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_stream_end_that_call_and_no_other() {
    let zero = frame(WINDOW_UPDATE, 0, FAULTY, &[0; 4]);
    let long = frame(DATA, END_STREAM, FAULTY, b"longer");
    let short = frame(DATA, END_STREAM, FAULTY, b"s");
    // All that a call needs, in the wrong order.
    let late = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/test.Echo/Put"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("heddle-to", "default/echo/e1"),
        (":authority", "echo.default"),
    ]);
    // What is sent, and whether the service may see the call.
    let cases = [
        ("increment of 0", [head(FAULTY, &[]), zero].concat(), true),
        (
            "upper-case field name",
            head(FAULTY, &[("X-Upper", "1")]),
            false,
        ),
        (
            "connection-specific field",
            head(FAULTY, &[("connection", "keep-alive")]),
            false,
        ),
        (
            "te other than trailers",
            head(FAULTY, &[("te", "gzip")]),
            false,
        ),
        (
            "pseudo field after a regular one",
            frame(HEADERS, END_HEADERS, FAULTY, &late),
            false,
        ),
        (
            "more than content-length",
            [head(FAULTY, &[("content-length", "3")]), long].concat(),
            true,
        ),
        (
            "less than content-length",
            [head(FAULTY, &[("content-length", "3")]), short].concat(),
            true,
        ),
    ];
    let (b, backend, mut other) = stage().await;
    for (number, (what, fault, seen)) in cases.into_iter().enumerate() {
        let stream = OPEN + 2 * u32::try_from(number).unwrap();
        other.begin(stream).await;
        let mut link = Link::establish(&b, "a").await;
        link.begin(OPEN).await;
        let before = backend.calls();
        link.0.send(&fault).await;
        let verdict = (RST_STREAM, FAULTY, ErrorCode::PROTOCOL_ERROR);
        assert_eq!(link.verdict().await, verdict, "{what}");
        link.finish(OPEN).await;
        // The link takes new calls too.
        link.begin(FAULTY + 2).await;
        link.finish(FAULTY + 2).await;
        let calls = backend.calls() - before;
        assert!(seen || calls == 1, "{what}: the service saw {calls} calls");
        other.finish(stream).await;
    }
}
