//! Whole calls between two connections.

use super::pair::*;
use crate::{ErrorCode, Initiator, Kind};

fn headers(stream: u32, token: u64, kind: Kind, end: bool, fields: &crate::Fields) -> Seen {
    Seen::Headers {
        stream,
        token,
        kind,
        end,
        fields: pairs(fields),
    }
}

fn data(stream: u32, bytes: &[u8], end: bool) -> Seen {
    Seen::Data {
        stream,
        bytes: bytes.to_vec(),
        end,
    }
}

#[test]
fn unary_call_goes_through_and_leaves_nothing() {
    let mut pair = Pair::new();
    for round in 0..3u32 {
        let stream = pair.client.conn.open(&request(), 42, false).unwrap();
        assert_eq!(stream.get(), 1 + 2 * round);
        assert_eq!(pair.client.conn.data(stream, b"hello", true), Ok(5));
        pair.run();
        let id = stream.get();
        let sent = [
            headers(id, 0, Kind::Request, false, &request()),
            data(id, b"hello", true),
        ];
        assert_eq!(pair.server.news(), sent);
        let server = &mut pair.server.conn;
        server.headers(stream, &response(), false).unwrap();
        assert_eq!(server.data(stream, b"world", false), Ok(5));
        server.headers(stream, &trailers(), true).unwrap();
        assert_eq!(server.live_streams(), 0);
        pair.run();
        let came = [
            headers(id, 42, Kind::Response, false, &response()),
            data(id, b"world", false),
            headers(id, 42, Kind::Trailers, true, &trailers()),
        ];
        assert_eq!(pair.client.news(), came);
        assert_eq!(pair.client.conn.live_streams(), 0);
        assert_eq!(pair.client.conn.queued_bytes(), 0);
    }
}

#[test]
fn large_body_is_queued_drained_and_whole() {
    let mut pair = Pair::new();
    pair.client.conn.set_low_memory(false);
    let stream = pair.open(false);
    let body: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let now = pair.client.conn.data(stream, &body, true).unwrap();
    assert_eq!(now, 65_536, "no more than the stream's window");
    assert!(pair.client.conn.queued_bytes() > 900_000);
    pair.run();
    let mut got = Vec::new();
    for seen in pair.server.news() {
        if let Seen::Data { bytes, end, .. } = seen {
            got.extend_from_slice(&bytes);
            assert_eq!(end, got.len() == body.len());
        }
    }
    assert!(got == body, "{} of {} bytes", got.len(), body.len());
    assert_eq!(now + pair.client.drained_bytes(), body.len());
    assert_eq!(pair.client.conn.queued_bytes(), 0);
}

#[test]
fn cancel_reaches_the_other_side_both_ways() {
    let mut pair = Pair::new();
    let one = pair.open(false);
    let two = pair.open(false);
    pair.server.news();
    pair.client.conn.reset(one, ErrorCode::CANCEL);
    pair.server.conn.reset(two, ErrorCode(0xfeed));
    pair.run();
    let reset = |stream, code| Seen::Reset {
        stream,
        code,
        unprocessed: false,
        by: Initiator::Remote,
    };
    assert_eq!(pair.server.news(), [reset(1, ErrorCode::CANCEL)]);
    assert_eq!(pair.client.news(), [reset(3, ErrorCode(0xfeed))]);
    assert_eq!(pair.client.conn.live_streams(), 0);
    assert_eq!(pair.server.conn.live_streams(), 0);
}

#[test]
fn every_cut_of_the_bytes_gives_the_same() {
    for cut in 1..40 {
        let mut pair = Pair::with(crate::Config::default(), crate::Config::default());
        let stream = pair.client.conn.open(&request(), 1, false).unwrap();
        pair.client.conn.data(stream, &[9; 100], true).unwrap();
        while pair.step(cut) {}
        let mut got = Vec::new();
        let mut ended = false;
        for seen in pair.server.news() {
            match seen {
                Seen::Headers { fields, .. } => assert_eq!(fields, pairs(&request())),
                Seen::Data { bytes, end, .. } => {
                    assert!(!ended);
                    ended = end;
                    got.extend(bytes);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, [9; 100]);
        assert!(ended);
    }
}
