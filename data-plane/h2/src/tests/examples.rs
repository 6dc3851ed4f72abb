//! The examples of RFC 9113 §8.8, each read by its receiver and written by its sender.

use super::pair::{Seen, list, pairs, request};
use super::script::*;
use crate::frame::kind;
use crate::{Fields, Kind, StreamId};

const BINARY: [u8; 123] = [0xd8; 123];

fn headers(kind: Kind, end: bool, fields: &Fields) -> Seen {
    Seen::Headers {
        stream: 1,
        token: 0,
        kind,
        end,
        fields: pairs(fields),
    }
}

fn binary(end: bool) -> Seen {
    Seen::Data {
        stream: 1,
        bytes: BINARY.to_vec(),
        end,
    }
}

/// A client with a request on stream 1.
fn with_request() -> Script {
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, true).unwrap();
    script.answers();
    script
}

/// A server with a request on stream 1.
fn asking() -> (Script, StreamId) {
    let mut script = Script::server();
    let open = script.headers(1, &request(), ES);
    script.send(&[open]);
    (script, StreamId(1))
}

#[test]
fn simple_request() {
    // §8.8.1
    let fields = list(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "example.org"),
        (":path", "/resource"),
        ("host", "example.org"),
        ("accept", "image/jpeg"),
    ]);
    let mut server = Script::server();
    let frame = server.headers(1, &fields, ES);
    assert_eq!(
        server.send(&[frame]),
        [headers(Kind::Request, true, &fields)]
    );

    let mut client = Script::client();
    client.side.conn.open(&fields, 0, true).unwrap();
    assert_eq!(client.answers(), ["HEADERS 1 ES"]);
    assert_eq!(client.lists, [fields]);
}

#[test]
fn simple_response() {
    // §8.8.2
    let fields = list(&[
        (":status", "304"),
        ("etag", "\"xyzzy\""),
        ("expires", "Thu, 23 Jan 2031 00:00:00 GMT"),
    ]);
    let mut client = with_request();
    let frame = client.headers(1, &fields, ES);
    assert_eq!(
        client.send(&[frame]),
        [headers(Kind::Response, true, &fields)]
    );
    assert_eq!(client.side.conn.live_streams(), 0);

    let (mut server, stream) = asking();
    server.side.conn.headers(stream, &fields, true).unwrap();
    assert_eq!(server.answers(), ["HEADERS 1 ES"]);
    assert_eq!(server.lists, [fields]);
}

#[test]
fn complex_request() {
    // §8.8.3: the list comes in two frames, and a field may lie across both.
    let pseudo = [
        (":method", "POST"),
        (":authority", "example.org"),
        (":path", "/resource"),
        (":scheme", "https"),
    ];
    let regular = [
        ("content-type", "image/jpeg"),
        ("host", "example.org"),
        ("content-length", "123"),
    ];
    let fields = list(&[&pseudo[..], &regular[..]].concat());
    let first = Script::server().block(&list(&pseudo)).len();
    for cut in [first, first + 5] {
        let mut server = Script::server();
        let block = server.block(&fields);
        let seen = server.send(&[
            raw(kind::HEADERS, 0, 1, &block[..cut]),
            raw(kind::CONTINUATION, EH, 1, &block[cut..]),
            data(1, &BINARY, ES),
        ]);
        assert_eq!(
            seen,
            [headers(Kind::Request, false, &fields), binary(true)],
            "cut at {cut}"
        );
    }

    // So short a list goes out in one frame: where to cut is the sender's choice.
    let mut client = Script::client();
    let stream = client.side.conn.open(&fields, 0, false).unwrap();
    client.side.conn.data(stream, &BINARY, true).unwrap();
    assert_eq!(client.answers(), ["HEADERS 1", "DATA 1 123 ES"]);
    assert_eq!(client.lists, [fields]);
}

#[test]
fn response_with_body() {
    // §8.8.4
    let fields = list(&[
        (":status", "200"),
        ("content-type", "image/jpeg"),
        ("content-length", "123"),
    ]);
    let mut client = with_request();
    let head = client.headers(1, &fields, 0);
    let seen = client.send(&[head, data(1, &BINARY, ES)]);
    assert_eq!(
        seen,
        [headers(Kind::Response, false, &fields), binary(true)]
    );

    let (mut server, stream) = asking();
    server.side.conn.headers(stream, &fields, false).unwrap();
    server.side.conn.data(stream, &BINARY, true).unwrap();
    assert_eq!(server.answers(), ["HEADERS 1", "DATA 1 123 ES"]);
    assert_eq!(server.lists, [fields]);
}

#[test]
fn informational_responses() {
    // §8.8.5: 100, the final response, and trailers.
    let early = list(&[(":status", "100"), ("extension-field", "bar")]);
    let last = list(&[
        (":status", "200"),
        ("content-type", "image/jpeg"),
        ("trailer", "Foo"),
    ]);
    let foo = list(&[("foo", "bar")]);
    let mut client = with_request();
    let frames = [
        client.headers(1, &early, 0),
        client.headers(1, &last, 0),
        data(1, &BINARY, 0),
        client.headers(1, &foo, ES),
    ];
    let expected = [
        headers(Kind::Informational, false, &early),
        headers(Kind::Response, false, &last),
        binary(false),
        headers(Kind::Trailers, true, &foo),
    ];
    assert_eq!(client.send(&frames), expected);
    assert_eq!(client.side.conn.live_streams(), 0);

    let (mut server, stream) = asking();
    let conn = &mut server.side.conn;
    conn.headers(stream, &early, false).unwrap();
    conn.headers(stream, &last, false).unwrap();
    conn.data(stream, &BINARY, false).unwrap();
    conn.headers(stream, &foo, true).unwrap();
    assert_eq!(
        server.answers(),
        ["HEADERS 1", "HEADERS 1", "DATA 1 123", "HEADERS 1 ES"]
    );
    assert_eq!(server.lists, [early, last, foo]);
}
