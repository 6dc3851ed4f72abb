//! GOAWAY in both directions, draining, PING (RFC 9113 §6.7, §6.8).

use std::time::Duration;

use super::pair::{Pair, Seen, request, response};
use super::script::*;
use crate::{ErrorCode, Initiator, OpenError, StreamId};

const NO_ERROR: ErrorCode = ErrorCode::NO_ERROR;

#[test]
fn drain_takes_what_was_on_its_way_and_then_no_more() {
    let mut pair = Pair::new();
    let before = pair.open(false);
    pair.server.conn.drain(pair.now);
    assert!(pair.server.conn.is_draining());
    // On its way when the client does not know yet:
    let crossing = pair.client.conn.open(&request(), 0, true).unwrap();
    pair.run();
    assert_eq!(
        pair.client.conn.open(&request(), 0, true),
        Err(OpenError::Draining)
    );
    assert_eq!(pair.client.conn.open_slots(), 0);
    let seen = pair.server.news();
    assert!(
        matches!(seen[..], [_, Seen::Headers { stream: 3, .. }]),
        "{seen:?}"
    );
    let goaways = pair.client.news();
    assert_eq!(
        goaways.len(),
        2,
        "first 2^31-1, then the real id: {goaways:?}"
    );
    for stream in [before, crossing] {
        pair.server.conn.headers(stream, &response(), true).unwrap();
    }
    pair.client.conn.data(before, b"end", true).unwrap();
    pair.run();
    let ends: Vec<_> = pair.client.news();
    assert_eq!(ends.len(), 2);
    assert_eq!(pair.client.conn.live_streams(), 0);
    assert_eq!(pair.server.conn.live_streams(), 0);
}

#[test]
fn drain_does_not_wait_for_a_client_that_answers_no_ping() {
    let mut script = Script::server();
    let one = script.headers(1, &request(), 0);
    script.send(&[one]);
    script.side.conn.drain(script.now);
    script.side.conn.drain(script.now);
    assert_eq!(
        script.answers(),
        ["GOAWAY 2147483647 NO_ERROR", "PING hdldrain"]
    );
    let deadline = script.side.conn.deadline().unwrap();
    assert_eq!(deadline - script.now, Duration::from_secs(1));
    let three = script.headers(3, &request(), 0);
    assert_eq!(script.send(&[three]).len(), 1);
    script.pass(Duration::from_secs(1));
    assert_eq!(script.answers(), ["GOAWAY 3 NO_ERROR"]);
    // What comes after is ignored, but decoded, and its DATA credited; the table stays right.
    let five = script.headers(5, &request(), 0);
    let frames = [five, data(5, &[0; 100], ES), data(3, b"x", ES)];
    let seen = script.send(&frames);
    assert!(
        matches!(seen[..], [Seen::Data { stream: 3, .. }]),
        "{seen:?}"
    );
    assert_eq!(script.answers(), [""; 0]);
    script
        .side
        .conn
        .headers(StreamId(3), &response(), true)
        .unwrap();
    script
        .side
        .conn
        .headers(StreamId(1), &response(), true)
        .unwrap();
    assert_eq!(
        script.side.conn.live_streams(),
        1,
        "the client has not ended 1"
    );
}

#[test]
fn fatal_error_while_draining_lowers_the_last_id() {
    let mut script = Script::server();
    let one = script.headers(1, &request(), 0);
    script.send(&[one]);
    script.side.conn.drain(script.now);
    script.answers();
    script.send(&[data(0, b"x", 0)]);
    assert_eq!(script.answers(), ["GOAWAY 1 PROTOCOL_ERROR"]);
    assert_eq!(script.side.conn.deadline(), None);
}

#[test]
fn streams_above_goaway_are_unprocessed_and_lower_ones_finish() {
    let mut script = Script::client();
    for _ in 0..4 {
        script.side.conn.open(&request(), 9, true).unwrap();
    }
    script.answers();
    let head = script.headers(3, &response(), ES);
    let late = script.headers(5, &response(), 0);
    let seen = script.send(&[
        goaway(3, ErrorCode(77), b"bye"),
        head,
        late,
        data(5, b"late", ES),
    ]);
    let unprocessed = |stream| Seen::Reset {
        stream,
        code: ErrorCode::REFUSED_STREAM,
        unprocessed: true,
        by: Initiator::Remote,
    };
    let away = Seen::GoAway {
        code: ErrorCode(77),
        debug: b"bye".to_vec(),
    };
    assert_eq!(seen[..3], [away, unprocessed(5), unprocessed(7)]);
    assert!(matches!(
        seen[3..],
        [Seen::Headers {
            stream: 3,
            end: true,
            ..
        }]
    ));
    assert_eq!(script.answers(), [""; 0], "nothing is reset on the wire");
    assert_eq!(script.side.conn.live_streams(), 1);
    // The last id may fall, and never rise.
    let seen = script.send(&[goaway(0, NO_ERROR, b"")]);
    assert_eq!(seen[1..], [unprocessed(1)]);
    let seen = script.send(&[goaway(1, NO_ERROR, b"")]);
    assert_eq!(seen, [Seen::Error(ErrorCode::PROTOCOL_ERROR)]);
}

#[test]
fn goaway_and_no_slots_in_one_read() {
    // CVE-2021-32780.
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, true).unwrap();
    let seen = script.send(&[goaway(0, NO_ERROR, b""), settings(&[(3, 0)])]);
    assert_eq!(seen.len(), 2);
    assert_eq!(script.side.conn.live_streams(), 0);
    assert_eq!(script.side.conn.open_slots(), 0);
}

#[test]
fn a_clients_goaway_ends_none_of_its_own_streams() {
    let mut script = Script::server();
    let one = script.headers(1, &request(), ES);
    let seen = script.send(&[one, goaway(0, NO_ERROR, b"")]);
    assert!(matches!(
        seen[..],
        [Seen::Headers { .. }, Seen::GoAway { .. }]
    ));
    script
        .side
        .conn
        .headers(StreamId(1), &response(), true)
        .unwrap();
    assert_eq!(script.answers(), ["HEADERS 1 ES"]);
}

#[test]
fn goaway_cut_anywhere_is_understood() {
    let bytes = goaway(0, ErrorCode::ENHANCE_YOUR_CALM, b"too_many_pings");
    for cut in 0..bytes.len() {
        let mut script = Script::client();
        let mut seen = script.send(&[bytes[..cut].to_vec()]);
        seen.extend(script.send(&[bytes[cut..].to_vec(), ping(b"12345678")]));
        assert!(
            matches!(&seen[..], [Seen::GoAway { code: ErrorCode::ENHANCE_YOUR_CALM, debug }]
                if b"too_many_pings".windows(debug.len().max(1)).any(|w| w == debug)
                    || debug.is_empty()),
            "{cut}: {seen:?}"
        );
        assert_eq!(script.answers(), ["PING ACK"]);
    }
}

#[test]
fn close_says_why_and_ends_or_lets_finish() {
    let mut script = Script::server();
    let one = script.headers(1, &request(), 0);
    script.send(&[one]);
    script.side.conn.close(NO_ERROR, b"");
    assert_eq!(script.answers(), ["GOAWAY 1 NO_ERROR"]);
    assert_eq!(script.send(&[data(1, b"x", ES)]).len(), 1);
    script
        .side
        .conn
        .close(ErrorCode::ENHANCE_YOUR_CALM, &[b'x'; 1000]);
    assert!(script.side.conn.output().len() < 300, "debug data is cut");
    assert_eq!(script.answers(), ["GOAWAY 1 ENHANCE_YOUR_CALM"]);
    assert_eq!(script.side.conn.live_streams(), 0);
    assert!(
        script
            .side
            .conn
            .headers(StreamId(1), &response(), true)
            .is_err()
    );
}

#[test]
fn a_draining_client_opens_no_more_and_finishes() {
    let mut pair = Pair::new();
    let stream = pair.open(true);
    pair.client.conn.drain(pair.now);
    assert_eq!(
        pair.client.conn.open(&request(), 0, true),
        Err(OpenError::Draining)
    );
    pair.run();
    pair.server.conn.headers(stream, &response(), true).unwrap();
    pair.run();
    assert!(matches!(
        pair.client.news()[..],
        [Seen::Headers { end: true, .. }]
    ));
    assert!(pair.server.conn.is_draining());
}

#[test]
fn pings_are_answered_and_ours_is_told_apart() {
    let mut pair = Pair::new();
    assert!(pair.client.conn.ping(*b"appli-01"));
    assert!(!pair.client.conn.ping(*b"appli-02"), "one at a time");
    assert!(
        !pair.server.conn.ping(*b"hdlprobe"),
        "reserved by the connection"
    );
    pair.run();
    assert_eq!(pair.client.news(), [Seen::PingAck(*b"appli-01")]);
    assert_eq!(pair.server.news(), []);
    assert!(pair.client.conn.ping(*b"appli-02"));
    let mut script = Script::client();
    let ack = raw(6, 1, 0, b"whatever");
    assert_eq!(script.send(&[ack]), [], "an answer to nothing is nothing");
}
