//! Frames in each state of a stream (RFC 9113 §5.1), as server and as client.

use super::pair::{Seen, list, request, response, trailers};
use super::script::*;
use crate::frame::kind;
use crate::{ErrorCode, Initiator, Kind, OpenError};

const CANCEL: ErrorCode = ErrorCode::CANCEL;
const PE: ErrorCode = ErrorCode::PROTOCOL_ERROR;
const CLOSED: ErrorCode = ErrorCode::STREAM_CLOSED;

fn by_us(stream: u32, code: ErrorCode) -> Seen {
    Seen::Reset {
        stream,
        code,
        unprocessed: false,
        by: Initiator::Local,
    }
}

/// A server with stream 1 open (or half-closed by the client).
fn opened(flags: u8) -> Script {
    let mut script = Script::server();
    let open = script.headers(1, &request(), flags);
    assert_eq!(script.send(&[open]).len(), 1);
    script
}

#[test]
fn half_closed_remote_takes_no_data_and_no_headers() {
    for trailers in [false, true] {
        let mut script = opened(ES);
        let frame = match trailers {
            false => data(1, b"x", 0),
            true => script.headers(1, &list(&[("a", "b")]), ES),
        };
        assert_eq!(
            script.send(std::slice::from_ref(&frame)),
            [by_us(1, CLOSED)]
        );
        assert_eq!(script.answers(), ["RST 1 STREAM_CLOSED"]);
        // One RST is enough.
        assert_eq!(script.send(&[data(1, b"x", 0), data(1, b"x", ES)]), []);
        assert_eq!(script.answers(), [""; 0]);
    }
    let mut script = opened(ES);
    assert_eq!(script.send(&[window_update(1, 9)]), []);
    assert_eq!(script.answers(), [""; 0]);
}

#[test]
fn after_our_reset_late_frames_are_dropped_but_decoded() {
    let mut script = opened(0);
    script
        .side
        .conn
        .reset(crate::StreamId(1), ErrorCode::INTERNAL_ERROR);
    assert_eq!(script.answers(), ["RST 1 INTERNAL_ERROR"]);
    // These trailers put a field into the table that the next request uses.
    let late = script.headers(1, &list(&[("x-late", "carried by the table")]), ES);
    let again = script.headers(1, &list(&[("x-late", "carried by the table")]), ES);
    let frames = [data(1, &[0; 9], 0), late, again, rst(1, CANCEL)];
    assert_eq!(script.send(&frames), []);
    let mut next = request();
    next.push(b"x-late", b"carried by the table");
    let open = script.headers(3, &next, ES);
    assert!(open.len() < 60, "the encoder used its table");
    let seen = script.send(&[open]);
    assert!(
        matches!(&seen[..], [Seen::Headers { stream: 3, fields, .. }]
            if fields.last() == Some(&("x-late".into(), "carried by the table".into()))),
        "{seen:?}"
    );
    assert_eq!(script.answers(), [""; 0]);
}

#[test]
fn after_the_peers_reset_its_frames_are_errors() {
    // §5.1 "closed": the peer knows that the stream is over.
    let reset = || {
        let mut script = opened(0);
        let seen = script.send(&[rst(1, CANCEL)]);
        assert!(matches!(seen[..], [Seen::Reset { code: CANCEL, .. }]));
        script
    };
    let mut script = reset();
    assert_eq!(script.send(&[data(1, b"x", 0), data(1, b"x", 0)]), []);
    assert_eq!(script.answers(), ["RST 1 STREAM_CLOSED"], "once");
    let mut script = reset();
    assert_eq!(script.send(&[rst(1, CANCEL), window_update(1, 1)]), []);
    assert_eq!(script.answers(), [""; 0]);
    let mut script = reset();
    let again = script.headers(1, &request(), ES);
    assert_eq!(script.send(&[again]), [Seen::Error(CLOSED)]);
}

#[test]
fn stream_ids_rise_and_are_used_once() {
    // §5.1.1
    let mut script = Script::server();
    let (five, three) = (
        script.headers(5, &request(), ES),
        script.headers(3, &request(), ES),
    );
    let seen = script.send(&[five, three]);
    assert!(matches!(
        seen[..],
        [Seen::Headers { stream: 5, .. }, Seen::Error(PE)]
    ));
    assert_eq!(script.answers(), ["GOAWAY 5 PROTOCOL_ERROR"]);
}

#[test]
fn streams_over_the_limit_are_refused_and_their_ids_used_up() {
    let mut script = Script::server_with(crate::Config {
        max_concurrent_streams: 2,
        ..Default::default()
    });
    let frames: Vec<_> = [1, 3, 5]
        .map(|id| script.headers(id, &request(), 0))
        .to_vec();
    assert_eq!(script.send(&frames).len(), 2);
    assert_eq!(script.answers(), ["RST 5 REFUSED_STREAM"]);
    // The refused one's body is on its way; its credit comes back with the connection's.
    assert_eq!(script.send(&[data(5, &[0; 100], ES)]), []);
    // A slot is free again, for a new id.
    script.send(&[rst(1, CANCEL)]);
    let seven = script.headers(7, &request(), 0);
    assert!(matches!(
        script.send(&[seven])[..],
        [Seen::Headers { stream: 7, .. }]
    ));
    assert_eq!(script.answers(), [""; 0]);
    assert_eq!(script.side.conn.counters().refused, 1);
}

#[test]
fn malformed_request_is_reset_without_an_event() {
    let mut script = Script::server();
    let bad = script.headers(1, &list(&[(":method", "GET")]), 0);
    assert_eq!(script.send(&[bad, data(1, b"body", ES)]), []);
    assert_eq!(script.answers(), ["RST 1 PROTOCOL_ERROR"]);
    assert_eq!(script.side.conn.live_streams(), 0);
}

#[test]
fn trailers_must_end_the_stream() {
    // §8.1
    let mut script = opened(0);
    let more = script.headers(1, &list(&[("a", "b")]), 0);
    assert_eq!(script.send(&[more]), [by_us(1, PE)]);
    assert_eq!(script.answers(), ["RST 1 PROTOCOL_ERROR"]);
}

#[test]
fn client_sees_idle_streams_and_pushes_as_errors() {
    for frame in [
        data(1, b"x", 0),
        rst(3, CANCEL),
        window_update(5, 1),
        data(2, b"x", 0),
    ] {
        let mut script = Script::client();
        assert_eq!(script.send(&[frame]), [Seen::Error(PE)]);
    }
    for id in [1, 2] {
        let mut script = Script::client();
        let response = script.headers(id, &response(), 0);
        assert_eq!(
            script.send(&[response]),
            [Seen::Error(PE)],
            "response on idle {id}"
        );
    }
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, true).unwrap();
    let push = raw(kind::PUSH_PROMISE, EH, 1, &[0, 0, 0, 2, 0x88]);
    assert_eq!(script.send(&[push]), [Seen::Error(PE)]);
}

#[test]
fn data_before_the_response_is_an_error_of_the_stream() {
    for informational in [false, true] {
        let mut script = Script::client();
        let stream = script.side.conn.open(&request(), 0, true).unwrap();
        let one = script.headers(1, &list(&[(":status", "103")]), 0);
        let first = if informational { vec![one] } else { vec![] };
        script.send(&first);
        assert_eq!(script.send(&[data(1, b"x", 0)]), [by_us(stream.get(), PE)]);
    }
}

#[test]
fn informational_responses_come_before_the_final_one() {
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, false).unwrap();
    let frames: Vec<_> = ["103", "103", "199", "200"]
        .iter()
        .map(|status| script.headers(1, &list(&[(":status", status)]), 0))
        .collect();
    let kinds: Vec<_> = script
        .send(&frames)
        .into_iter()
        .map(|seen| match seen {
            Seen::Headers { kind, .. } => kind,
            other => panic!("{other:?}"),
        })
        .collect();
    use Kind::{Informational, Response};
    assert_eq!(
        kinds,
        [Informational, Informational, Informational, Response]
    );
    // A 1xx does not end a stream, and 101 does not exist here (§8.1, §8.6).
    for (status, flags) in [("103", ES), ("101", 0)] {
        let stream = script.side.conn.open(&request(), 0, false).unwrap().get();
        let bad = script.headers(stream, &list(&[(":status", status)]), flags);
        assert_eq!(script.send(&[bad]), [by_us(stream, PE)]);
    }
}

#[test]
fn client_discards_what_comes_after_its_cancel() {
    let mut script = Script::client();
    let stream = script.side.conn.open(&request(), 0, false).unwrap();
    script.side.conn.reset(stream, CANCEL);
    script.answers();
    let (head, tail) = (
        script.headers(1, &response(), 0),
        script.headers(1, &trailers(), ES),
    );
    let late = [
        head,
        data(1, &[1; 500], 0),
        tail,
        rst(1, ErrorCode::NO_ERROR),
    ];
    assert_eq!(script.send(&late), []);
    assert_eq!(script.answers(), [""; 0]);
}

#[test]
fn a_hundred_cancels_with_a_full_pipe_are_no_abuse() {
    let mut script = Script::client();
    let streams: Vec<_> = (0..100)
        .map(|_| script.side.conn.open(&request(), 0, false).unwrap())
        .collect();
    for &stream in &streams {
        script.side.conn.reset(stream, CANCEL);
    }
    for &stream in &streams {
        let id = stream.get();
        let head = script.headers(id, &response(), 0);
        let mut frames = vec![head];
        frames.extend((0..20).map(|_| data(id, &[1; 100], 0)));
        assert_eq!(script.send(&frames), []);
    }
    assert!(script.side.conn.open(&request(), 0, true).is_ok());
}

#[test]
fn early_full_response_then_reset_without_error() {
    // §8.1: the server has answered and does not want the rest of the request.
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, false).unwrap();
    let (head, tail) = (
        script.headers(1, &response(), 0),
        script.headers(1, &trailers(), ES),
    );
    let seen = script.send(&[head, data(1, b"x", 0), tail, rst(1, ErrorCode::NO_ERROR)]);
    assert!(
        matches!(
            seen[..],
            [
                Seen::Headers {
                    kind: Kind::Response,
                    ..
                },
                Seen::Data { .. },
                Seen::Headers {
                    kind: Kind::Trailers,
                    end: true,
                    ..
                },
                Seen::Reset {
                    code: ErrorCode::NO_ERROR,
                    ..
                }
            ]
        ),
        "{seen:?}"
    );
    assert_eq!(script.side.conn.live_streams(), 0);
}

#[test]
fn commands_on_streams_that_are_gone_write_nothing() {
    let mut script = opened(0);
    let stream = crate::StreamId(1);
    script.send(&[rst(1, CANCEL)]);
    let conn = &mut script.side.conn;
    assert!(conn.headers(stream, &response(), false).is_err());
    assert!(conn.data(stream, b"x", true).is_err());
    conn.reset(stream, CANCEL);
    conn.release(stream, 10);
    conn.set_token(stream, 4);
    assert_eq!(script.answers(), [""; 0]);
    // Our own half ends once.
    let mut script = opened(0);
    let conn = &mut script.side.conn;
    assert!(
        conn.data(stream, b"x", false).is_err(),
        "no DATA before the response"
    );
    conn.headers(stream, &response(), true).unwrap();
    assert!(conn.data(stream, b"x", false).is_err());
    assert!(conn.headers(stream, &trailers(), true).is_err());
    assert_eq!(script.answers(), ["HEADERS 1 ES"]);
}

#[test]
fn trailers_only_stays_one_frame_and_empty_trailers_are_data() {
    let mut script = opened(ES);
    let stream = crate::StreamId(1);
    let only = list(&[(":status", "200"), ("grpc-status", "5")]);
    script.side.conn.headers(stream, &only, true).unwrap();
    assert_eq!(script.answers(), ["HEADERS 1 ES"]);
    let open = script.headers(3, &request(), ES);
    script.send(&[open]);
    let (conn, stream) = (&mut script.side.conn, crate::StreamId(3));
    conn.headers(stream, &response(), false).unwrap();
    conn.headers(stream, &list(&[]), true).unwrap();
    assert_eq!(script.answers(), ["HEADERS 3", "DATA 3 0 ES"]);
    assert_eq!(script.side.conn.live_streams(), 0);
}

#[test]
fn a_long_list_goes_out_in_continuation_frames() {
    let mut pair = super::pair::Pair::new();
    let stream = pair.open(true);
    pair.server.news();
    let message = "é".repeat(12_000);
    let list = list(&[(":status", "200"), ("grpc-message", &message)]);
    pair.server.conn.headers(stream, &list, true).unwrap();
    pair.run();
    let seen = pair.client.news();
    assert!(
        matches!(&seen[..], [Seen::Headers { fields, end: true, .. }] if fields[1].1 == message)
    );
}

#[test]
fn ids_run_out_loudly() {
    let mut script = Script::client();
    script.side.conn.next_id = (1 << 31) - 1;
    assert!(script.side.conn.open(&request(), 0, true).is_ok());
    let error = script.side.conn.open(&request(), 0, true);
    assert_eq!(error, Err(OpenError::IdsExhausted));
}
