//! Malformed messages (RFC 9113 §8.1.1, §8.2, §8.3): reset with PROTOCOL_ERROR and never passed on.
//! Also header lists that are too large.

use super::pair::{Seen, list, request, response};
use super::script::*;
use crate::{Config, ErrorCode, Fields, Initiator, Kind, StreamId};

type Pairs<'a> = &'a [(&'a str, &'a str)];

const BASE: Pairs<'static> = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "a"),
];

fn with(base: Pairs<'_>, more: Pairs<'_>) -> Fields {
    let mut fields = list(base);
    for (name, value) in more {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields
}

fn server_takes(fields: &Fields) -> bool {
    let mut script = Script::server();
    let open = script.headers(1, fields, ES);
    let seen = script.send(&[open]);
    let answers = script.answers();
    match seen[..] {
        [Seen::Headers { .. }] => answers.is_empty(),
        _ => {
            assert_eq!(
                (seen, answers),
                (vec![], vec!["RST 1 PROTOCOL_ERROR".into()])
            );
            false
        }
    }
}

fn trailers_pass(fields: &Fields) -> bool {
    let mut script = Script::server();
    let open = script.headers(1, &request(), 0);
    let end = script.headers(1, fields, ES);
    matches!(script.send(&[open, end])[1], Seen::Headers { .. })
}

fn client_takes(fields: &Fields) -> bool {
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, true).unwrap();
    script.answers();
    let response = script.headers(1, fields, 0);
    match script.send(&[response])[..] {
        [Seen::Headers { .. }] => true,
        [Seen::Reset { code, by, .. }] => {
            assert_eq!((code, by), (ErrorCode::PROTOCOL_ERROR, Initiator::Local));
            assert_eq!(script.answers(), ["RST 1 PROTOCOL_ERROR"]);
            false
        }
        _ => panic!(),
    }
}

#[test]
fn every_byte_of_names_and_values_is_judged_everywhere() {
    for byte in 0..=255u8 {
        let name_ok = byte > 0x20 && byte < 0x7f && !byte.is_ascii_uppercase() && byte != b':';
        let value_ok = !matches!(byte, 0 | b'\r' | b'\n');
        let edge_ok = value_ok && !matches!(byte, b' ' | b'\t');
        let mut cases = vec![
            (vec![b'x', byte, b'x'], b"v".to_vec(), name_ok),
            (b"x".to_vec(), vec![b'v', byte, b'v'], value_ok),
            (
                b"x".to_vec(),
                [&b"0123456789a"[..], &[byte], b"b"].concat(),
                value_ok,
            ),
            (
                b"x".to_vec(),
                [&b"0123456"[..], &[byte], b"b"].concat(),
                value_ok,
            ),
            (b"x".to_vec(), vec![byte, b'v'], edge_ok),
            (b"x".to_vec(), vec![b'v', byte], edge_ok),
        ];
        if byte != b':' {
            cases.push((vec![byte, b'x'], b"v".to_vec(), name_ok));
        }
        for (name, value, ok) in cases {
            let field = |mut fields: Fields| {
                fields.push(&name, &value);
                fields
            };
            let what = format!("{:?}: {:?}", name.escape_ascii(), value.escape_ascii());
            assert_eq!(server_takes(&field(list(BASE))), ok, "request {what}");
            assert_eq!(client_takes(&field(response())), ok, "response {what}");
            assert_eq!(trailers_pass(&field(Fields::new())), ok, "trailers {what}");
        }
    }
}

#[test]
fn fields_that_http2_does_not_know() {
    #[rustfmt::skip]
    let table: &[(&str, &str, bool)] = &[
        ("", "v", false),
        ("x", "", true),
        ("connection", "close", false),
        ("keep-alive", "5", false),
        ("proxy-connection", "close", false),
        ("transfer-encoding", "chunked", false),
        ("upgrade", "h2c", false),
        ("te", "trailers", true),
        ("te", "gzip", false),
        ("te", "trailers, gzip", false),
        ("te", "", false),
        ("x-connection", "close", true),
    ];
    for &(name, value, ok) in table {
        let more = [(name, value)];
        assert_eq!(
            server_takes(&with(BASE, &more)),
            ok,
            "request {name}: {value}"
        );
        assert_eq!(
            client_takes(&with(&[(":status", "200")], &more)),
            ok,
            "response {name}"
        );
        assert_eq!(trailers_pass(&list(&more)), ok, "trailers {name}");
    }
}

#[test]
fn pseudo_headers_of_requests() {
    let change = |name: &str, value: Option<&str>| {
        let mut fields = Fields::new();
        for (n, v) in BASE {
            match value {
                Some(value) if *n == name => fields.push(n.as_bytes(), value.as_bytes()),
                None if *n == name => {}
                _ => fields.push(n.as_bytes(), v.as_bytes()),
            }
        }
        fields
    };
    #[rustfmt::skip]
    let table: &[(&str, Option<&str>, bool)] = &[
        (":method", None, false), (":method", Some(""), false), (":method", Some("A B"), false),
        (":method", Some("PURGE-ALL"), true), (":method", Some("GET\u{e9}"), false),
        (":scheme", None, false), (":scheme", Some(""), false), (":scheme", Some("1http"), false),
        (":scheme", Some("coap+tcp"), true), (":scheme", Some("ht tp"), false),
        (":authority", None, true), (":authority", Some("user@host"), false),
        (":authority", Some("host/path"), false), (":authority", Some("[::1]:80"), true),
        (":path", None, false), (":path", Some(""), false), (":path", Some("a.B/C"), false),
        (":path", Some("*"), false), (":path", Some("/a#b"), false), (":path", Some("/a b"), false),
        (":path", Some("/a\u{7f}"), false), (":path", Some("/a\u{1}"), false),
        (":path", Some("/a?b=%20"), true), (":path", Some("http://a/b"), false),
    ];
    for &(name, value, ok) in table {
        assert_eq!(server_takes(&change(name, value)), ok, "{name} {value:?}");
    }
    for (more, ok) in [
        ((":method", "POST"), false),
        ((":path", "/a.B/C"), false),
        ((":status", "200"), false),
        ((":protocol", "websocket"), false),
        ((":unknown", "x"), false),
        (("host", "a"), true),
        (("host", "A"), true),
        (("host", "b"), false),
    ] {
        assert_eq!(server_takes(&with(BASE, &[more])), ok, "{more:?}");
    }
    let (first, rest) = BASE.split_last().unwrap();
    assert!(
        !server_takes(&with(rest, &[("a", "b"), *first])),
        "after a regular field"
    );
    assert!(!trailers_pass(&list(&[(":path", "/")])));
    assert!(!server_takes(&with(BASE, &[("host", "a"), ("host", "a")])));
}

#[test]
fn connect_options_and_extended_connect() {
    let connect = [(":method", "CONNECT"), (":authority", "a:1")];
    assert!(server_takes(&list(&connect)));
    assert!(!server_takes(&list(&[(":method", "CONNECT")])));
    assert!(!server_takes(&with(&connect, &[(":scheme", "http")])));
    assert!(!server_takes(&with(&connect, &[(":path", "/")])));
    let options = [
        (":method", "OPTIONS"),
        (":scheme", "http"),
        (":path", "*"),
        (":authority", "a"),
    ];
    assert!(server_takes(&list(&options)));
    let extended = |method| {
        list(&[
            (":method", method),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/chat"),
            (":authority", "a"),
        ])
    };
    assert!(!server_takes(&extended("CONNECT")), "not offered");
    let mut script = Script::server_with(Config {
        enable_connect_protocol: true,
        ..Config::default()
    });
    let (good, bad) = (
        script.headers(1, &extended("CONNECT"), 0),
        script.headers(3, &extended("GET"), 0),
    );
    assert!(matches!(
        script.send(&[good, bad])[..],
        [Seen::Headers { stream: 1, .. }]
    ));
    assert_eq!(script.answers(), ["RST 3 PROTOCOL_ERROR"]);
}

#[test]
fn pseudo_headers_of_responses() {
    for (fields, ok) in [
        (list(&[(":status", "200")]), true),
        (list(&[(":status", "599")]), true),
        (list(&[]), false),
        (list(&[(":status", "20")]), false),
        (list(&[(":status", "099")]), false),
        (list(&[(":status", "2000")]), false),
        (list(&[(":status", "+20")]), false),
        (list(&[(":status", "200"), (":status", "200")]), false),
        (list(&[(":status", "200"), (":path", "/")]), false),
        (list(&[("a", "b"), (":status", "200")]), false),
    ] {
        assert_eq!(
            client_takes(&fields),
            ok,
            "{:?}",
            super::pair::pairs(&fields)
        );
    }
}

/// A request of these lengths: does it come through to its end?
fn body_passes(lengths: &[&str], pieces: &[usize], end_by_trailers: bool) -> bool {
    let mut script = Script::server();
    let mut fields = request();
    for length in lengths {
        fields.push(b"content-length", length.as_bytes());
    }
    let (last, first) = match (pieces.split_last(), end_by_trailers) {
        (_, true) => (None, pieces),
        (None, _) => (None, pieces),
        (Some((last, first)), _) => (Some(*last), first),
    };
    let ends_at_once = last.is_none() && !end_by_trailers;
    let mut frames = vec![script.headers(1, &fields, if ends_at_once { ES } else { 0 })];
    frames.extend(first.iter().map(|&n| data(1, &vec![0; n], 0)));
    frames.extend(last.map(|n| data(1, &vec![0; n], ES)));
    if end_by_trailers {
        frames.push(script.headers(1, &list(&[("a", "b")]), ES));
    }
    let seen = script.send(&frames);
    let ended = seen.iter().any(|seen| {
        matches!(
            seen,
            Seen::Headers { end: true, .. } | Seen::Data { end: true, .. }
        )
    });
    assert_ne!(ended, script.answers() == ["RST 1 PROTOCOL_ERROR"]);
    ended
}

#[test]
fn content_length_is_kept() {
    #[rustfmt::skip]
    let table: &[(&[&str], &[usize], bool, bool)] = &[
        (&["5"], &[5], false, true),
        (&["5"], &[2, 3], false, true),
        (&["5"], &[5, 0], false, true),
        (&["5"], &[5], true, true),
        (&["0"], &[], false, true),
        (&["5"], &[4], false, false),
        (&["5"], &[6], false, false),
        (&["5"], &[], false, false),
        (&["5"], &[4], true, false),
        (&["5"], &[3, 3], true, false),
        (&["0"], &[1], false, false),
        (&["5", "5"], &[5], false, false),
        (&["5", "6"], &[5], false, false),
        (&["-1"], &[1], false, false),
        (&["+5"], &[5], false, false),
        (&["0x5"], &[5], false, false),
        (&[""], &[0], false, false),
        (&["99999999999999999999"], &[5], false, false),
        (&[], &[5], false, true),
    ];
    for &(lengths, pieces, trailers, ok) in table {
        let what = format!("{lengths:?} {pieces:?} trailers {trailers}");
        assert_eq!(body_passes(lengths, pieces, trailers), ok, "{what}");
    }
}

#[test]
fn content_length_of_responses_without_body() {
    for (method, status, flags, ok) in [
        ("HEAD", "200", ES, true),
        ("GET", "304", ES, true),
        ("GET", "204", ES, true),
        ("GET", "200", ES, false),
    ] {
        let mut script = Script::client();
        let mut fields = request();
        fields.set(b":method", method.as_bytes());
        script.side.conn.open(&fields, 0, true).unwrap();
        let list = list(&[(":status", status), ("content-length", "10")]);
        let head = script.headers(1, &list, flags);
        let seen = script.send(&[head]);
        let passed = matches!(seen[..], [Seen::Headers { end: true, .. }]);
        assert_eq!(passed, ok, "{method} {status}");
        assert_eq!(script.side.conn.live_streams(), 0);
    }
}

#[test]
fn lists_too_large_are_told_and_answered() {
    let mut script = Script::server();
    let mut large = request();
    for _ in 0..10 {
        large.push(b"x-large", &[b'a'; 5000]);
    }
    let block = script.block(&large);
    let mut frames = Vec::new();
    for (n, piece) in block.chunks(16_000).enumerate() {
        let kind = if n == 0 { 1 } else { 9 };
        let end = if (n + 1) * 16_000 >= block.len() {
            EH
        } else {
            0
        };
        frames.push(raw(kind, if n == 0 { ES | end } else { end }, 1, piece));
    }
    let too_large = Seen::TooLarge {
        stream: 1,
        kind: Kind::Request,
        end: true,
    };
    assert_eq!(script.send(&frames), [too_large]);
    assert_eq!(
        script.side.fields.path(),
        Some(&b"/echo.Echo/Unary"[..]),
        "what fitted"
    );
    let reply = list(&[(":status", "200"), ("grpc-status", "8")]);
    script.side.conn.headers(StreamId(1), &reply, true).unwrap();
    assert_eq!(script.answers(), ["HEADERS 1 ES"]);
    // Too many fields are too large as well, cookie crumbs included.
    let mut crumbs = request();
    for _ in 0..300 {
        crumbs.push(b"cookie", b"a=b");
    }
    let open = script.headers(3, &crumbs, ES);
    assert!(matches!(
        script.send(&[open])[..],
        [Seen::TooLarge { stream: 3, .. }]
    ));
    let open = script.headers(5, &request(), ES);
    assert!(matches!(
        script.send(&[open])[..],
        [Seen::Headers { stream: 5, .. }]
    ));
}

#[test]
fn order_duplicates_and_sensitivity_survive() {
    let mut pair = super::pair::Pair::new();
    let mut fields = request();
    for (name, value) in [
        ("b", "1"),
        ("a", "2"),
        ("b", "1"),
        ("x-bin", "AAE"),
        ("b", "0"),
    ] {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields.push_sensitive(b"authorization", b"Bearer secret");
    pair.client.conn.open(&fields, 0, true).unwrap();
    pair.run();
    assert!(pair.server.fields.iter().eq(fields.iter()));
}
