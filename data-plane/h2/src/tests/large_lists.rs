//! Header lists over their limits (RFC 9113 §10.5.1): decoded and discarded in little memory, at the
//! cost of their own stream only; what is kept of them; and where the connection ends.

use super::pair::{Seen, list, request, response};
use super::script::*;
use crate::{Config, ErrorCode, Fields, Kind};

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// HEADERS and CONTINUATION frames of one block.
fn split(stream: u32, block: &[u8], flags: u8, size: usize) -> Vec<Vec<u8>> {
    let pieces = block.len().div_ceil(size);
    let frame = |(n, piece): (usize, &[u8])| {
        let end = if n + 1 == pieces { EH } else { 0 };
        match n {
            0 => raw(1, flags | end, stream, piece),
            _ => raw(9, end, stream, piece),
        }
    };
    block.chunks(size).enumerate().map(frame).collect()
}

#[test]
fn a_list_far_over_the_limit_costs_its_own_stream_only() {
    // Issue 10, A1e. By literals (encoded 400 KB), and by one table entry named again and again
    // (decoded 700 KB). Each adds an entry to the table that a later list uses.
    let mut by_literals = request();
    for n in 0..100 {
        by_literals.push(b"x-large", format!("{n}{}", "a".repeat(4000)).as_bytes());
    }
    let by_entry = [
        &[0x82, 0x87, 0x84, 0x40, 1, b'x', 0x7f, 0x81, 0x1e][..],
        &[b'a'; 3968],
        &[0xbe; 170],
    ];
    let mut script = Script::server();
    let literals = script.block(&by_literals);
    let mut later = request();
    later.push(b"x-large", format!("99{}", "a".repeat(4000)).as_bytes());
    let open = script.headers(1, &request(), 0);
    script.send(&[open]);
    let frames = split(3, &literals, ES, 16_000);
    assert_eq!(
        script.send(&frames),
        [Seen::TooLarge {
            stream: 3,
            kind: Kind::Request,
            end: true
        }]
    );
    assert!(script.side.fields.capacity_bytes() <= 64 * 1024);
    assert_eq!(script.side.conn.partial_bytes(), 0);
    let headers = script.headers(5, &later, ES);
    let seen = script.send(&[headers, data(1, b"goes on", ES)]);
    let [Seen::Headers { fields, .. }, Seen::Data { bytes, .. }] = &seen[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(fields.len(), later.len());
    assert_eq!(fields.last().map(|(_, value)| value.len()), Some(4002));
    assert_eq!(bytes, b"goes on");
    // A response, at a client.
    let mut script = Script::client();
    for _ in 0..3 {
        script.side.conn.open(&request(), 0, true).unwrap();
    }
    let block = [&[0x88][..], &by_entry.concat()[3..]].concat();
    let seen = script.send(&[raw(1, EH, 1, &block), raw(1, EH, 3, &[0x88, 0xbe])]);
    assert!(matches!(
        seen[..],
        [
            Seen::TooLarge {
                stream: 1,
                kind: Kind::Response,
                ..
            },
            Seen::Headers { stream: 3, .. }
        ]
    ));
    // Trailers too.
    let block = &by_entry.concat()[3..];
    let seen = script.send(&[raw(1, EH | ES, 3, block), raw(1, EH, 5, &[0x88, 0xbe])]);
    assert!(matches!(
        seen[..],
        [
            Seen::TooLarge {
                stream: 3,
                kind: Kind::Trailers,
                ..
            },
            Seen::Headers { stream: 5, .. }
        ]
    ));
}

#[test]
fn trailers_and_responses_too_large_are_told_as_such() {
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, true).unwrap();
    script.side.conn.open(&request(), 0, true).unwrap();
    let crumbs = |first: Pairs<'_>| {
        let mut fields = list(first);
        for _ in 0..300 {
            fields.push(b"cookie", b"a=b");
        }
        fields
    };
    let frames = [
        script.headers(1, &response(), 0),
        script.headers(1, &crumbs(&[("grpc-status", "3")]), ES),
        script.headers(3, &crumbs(&[(":status", "200")]), ES),
    ];
    let seen = script.send(&frames);
    let (kind, end) = (Kind::Trailers, true);
    assert_eq!(
        seen[1],
        Seen::TooLarge {
            stream: 1,
            kind,
            end
        }
    );
    let kind = Kind::Response;
    assert_eq!(
        seen[2],
        Seen::TooLarge {
            stream: 3,
            kind,
            end
        }
    );
    assert_eq!(script.side.conn.live_streams(), 0);
}

/// Streams of others on the connection, and the list.
const OTHERS: u32 = 24;

/// A client that discards up to 16 MiB, with 24 open streams and a last one.
fn client() -> Script {
    let mut script = Script::client_with(Config {
        header_block_bytes: 16 << 20,
        ..Config::default()
    });
    for _ in 0..=OTHERS {
        script.side.conn.open(&request(), 0, true).unwrap();
    }
    let first = script.headers(1, &named("first"), 0);
    script.send(&[first]);
    script
}

/// A response with a field that the encoder puts into the table the second time.
fn named(name: &str) -> Fields {
    let mut fields = response();
    fields.push(b"x-name", name.as_bytes());
    fields
}

/// Issue 10, A1e: all others get their responses, by the tables as they are after the list.
fn check_others(mut script: Script, block: &[u8], size: usize) {
    let last = 2 * OTHERS + 1;
    for frame in split(last, block, ES, size) {
        let seen = script.send(&[frame]);
        if let Some(seen) = seen.last() {
            let kind = Kind::Response;
            let end = true;
            assert_eq!(
                *seen,
                Seen::TooLarge {
                    stream: last,
                    kind,
                    end
                }
            );
        }
        let conn = &script.side.conn;
        assert!(conn.partial_bytes() < 400 << 10, "{}", conn.partial_bytes());
        assert!(conn.buffer_bytes() < 700 << 10, "{}", conn.buffer_bytes());
    }
    assert_eq!(script.side.conn.partial_bytes(), 0);
    assert!(script.side.fields.capacity_bytes() <= 64 << 10);
    for stream in 1..OTHERS {
        let name = format!("name {}", stream / 3);
        let answer = script.headers(2 * stream + 1, &named(&name), ES);
        let seen = script.send(&[answer]);
        let [Seen::Headers { fields, .. }] = &seen[..] else {
            panic!("{seen:?}");
        };
        assert_eq!(fields.last(), Some(&("x-name".into(), name)));
    }
    assert_eq!(script.side.conn.counters().too_large, 1);
}

#[test]
fn a_response_of_megabytes_costs_its_own_call_only() {
    for bytes in [1 << 20, 4 << 20] {
        for size in [16_384, 2_500] {
            // Two very long values, as a service's details have them.
            let mut script = client();
            let mut two = list(&[(":status", "200"), ("grpc-status", "5")]);
            for name in [&b"grpc-status-details-bin"[..], b"x-big"] {
                two.push(name, &vec![b'A'; bytes / 2]);
            }
            let block = script.block(&two);
            check_others(script, &block, size);
            // Many fields, of which some go into the table.
            let mut script = client();
            let mut many = list(&[(":status", "200")]);
            for n in 0..bytes / 1000 {
                many.push(
                    b"x-many",
                    format!("{}{}", n / 2, "b".repeat(960)).as_bytes(),
                );
            }
            let block = script.block(&many);
            check_others(script, &block, size);
        }
    }
}

/// Issue 10, C2: the caller learns the status after a list that was decoded in parts, too.
#[test]
fn the_status_after_megabytes_is_kept() {
    let mut script = client();
    let mut fields = list(&[(":status", "200")]);
    fields.push(b"x-big", &vec![b'A'; 1 << 20]);
    fields.push(b"grpc-status", b"5");
    let block = script.block(&fields);
    script.send(&split(2 * OTHERS + 1, &block, ES, 16_384));
    assert_eq!(script.side.fields.status(), Some(200));
    assert_eq!(script.side.fields.get(b"grpc-status"), Some(&b"5"[..]));
}

#[test]
fn a_list_without_end_ends_the_connection() {
    // By its length as it is sent, and as it is decoded.
    let long = vec![b'a'; 17 << 20];
    let mut fields = list(&[(":status", "200")]);
    fields.push(b"x", &long);
    let mut script = client();
    let block = script.block(&fields);
    let entry = [&[0x40, 1, b'x', 0x7f, 0x81, 0x1e][..], &[b'a'; 3968]].concat();
    let bomb = [&[0x88][..], &entry, &[0xbe; 5_000]].concat();
    for block in [block, bomb] {
        let mut script = client();
        let seen = script.send(&split(2 * OTHERS + 1, &block, ES, 16_384));
        assert_eq!(seen, [Seen::Error(ErrorCode::ENHANCE_YOUR_CALM)]);
        assert!(script.side.conn.buffer_bytes() < 8 << 10);
    }
    // What callers send is cut at 1 MiB.
    let mut fields = request();
    fields.push(b"x", &long[..(1 << 20)]);
    let mut script = Script::server();
    let block = script.block(&fields);
    let seen = script.send(&split(1, &block, ES, 16_384));
    assert_eq!(seen, [Seen::Error(ErrorCode::ENHANCE_YOUR_CALM)]);
}

#[test]
fn what_is_kept_of_a_list_must_be_valid() {
    let mut script = Script::client();
    for _ in 0..2 {
        script.side.conn.open(&request(), 0, true).unwrap();
    }
    let many = |mut fields: Fields| {
        for _ in 0..300 {
            fields.push(b"x", b"y");
        }
        fields
    };
    let frames = [
        script.headers(1, &response(), 0),
        script.headers(1, &many(list(&[("grpc-message", "a\r\nb")])), ES),
        script.headers(3, &many(list(&[("x", "y"), (":status", "200")])), ES),
    ];
    let seen = script.send(&frames);
    for seen in &seen[1..] {
        assert!(
            matches!(
                seen,
                Seen::Reset {
                    code: ErrorCode::PROTOCOL_ERROR,
                    ..
                }
            ),
            "{seen:?}"
        );
    }
}
